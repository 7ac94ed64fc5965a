// The search runs in a Worker, which browsers do not start for a page that is read from the disk.
// There this class takes its place, and runs the worker's script in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const base = new URL(url, location.href);
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      const scope = frame.contentWindow;
      const load = (source) => new Promise((loaded, failed) => {
        const script = scope.document.createElement("script");
        script.src = new URL(source, base).href;
        script.onload = loaded;
        script.onerror = failed;
        scope.document.documentElement.append(script);
      });
      scope.importScripts = async (...sources) => { for (const source of sources) await load(source); };
      scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.scope = scope;
      this.ready = load(base.href);
    }

    postMessage(data) {
      this.ready.then(() => this.scope.dispatchEvent(new this.scope.MessageEvent("message", { data })));
    }

    terminate() { this.scope.frameElement.remove(); }
  };
}
