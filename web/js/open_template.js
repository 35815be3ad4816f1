// The editor opens a template that its address names, /?template=NAME&source=PACK, unless the name has a space in it.
// This opens ours, with names that people read.
import { app } from "../../../scripts/app.js";

const address = new URLSearchParams(location.search);
const source = address.get("source"), name = address.get("template");
const ours = new URL(import.meta.url).pathname.split("/").at(-3); // extensions/PACK/js/...
let wanted = source && source === decodeURIComponent(ours) && !/^[a-zA-Z0-9_.-]*$/.test(name ?? "");

async function open() {
    if (app.extensionManager.spinner) { // the editor still restores its own tabs
        setTimeout(open, 50);
        return;
    }
    const reply = await app.api.fetchApi(`/workflow_templates/${encodeURIComponent(source)}/${encodeURIComponent(name)}.json`);
    if (reply.ok) {
        await app.loadGraphData(await reply.json(), true, true, name, { openSource: "template" });
        history.replaceState(history.state, "", location.pathname); // else a reload opens it once more
    }
}

app.registerExtension({
    name: "PortraitAtelier.OpenTemplate",
    afterConfigureGraph() {
        if (wanted) {
            wanted = false;
            setTimeout(open);
        }
    },
});
