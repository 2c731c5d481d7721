from adatsq.peers import main

main()
