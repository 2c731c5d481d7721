// Loaded after require.js and before embed-amd.js: widget modules and fonts come from beside this file, never from a CDN.
{
  const here = new URL(".", document.currentScript.src).href;
  window.__jupyter_widgets_assets_path__ = here; // where embed-amd.js looks for its fonts
  require.config({ paths: {
    "anywidget": here + "anywidget",
    "@jupyter-widgets/html-manager/dist": here.slice(0, -1),
    "@jupyter-widgets": here.slice(0, -1),
  } });
}
