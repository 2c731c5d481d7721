"""AdaTSQ, read and rebuilt: how much precision a diffusion transformer needs, at which timestep, in which layer."""

__version__ = "0.1.0"
