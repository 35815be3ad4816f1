// The template browser lists the workflows in the order of the server's folder, which some file systems shuffle: demos first.
import { app } from "../../../scripts/app.js";

const folder = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-3)); // the clone's name

app.registerExtension({
    name: "PortraitAtelier.Templates",
    init() {
        const api = app.api;
        const get = api.getWorkflowTemplates;
        api.getWorkflowTemplates = async function (...args) {
            const templates = await get.apply(this, args);
            templates[folder]?.sort();
            return templates;
        };
    },
});
