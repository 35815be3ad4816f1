// The texts of our own workflows in the editor's language: titles, groups, notes, and names on subgraphs.
//
// ComfyUI translates names of nodes and inputs, but a workflow's titles and notes stand in its file. The table of
// translations is `portraitAtelier.workflows` in locales/<language>/main.json: English text -> text; a note is looked up
// line by line, without the marks of headings and lists. Only workflows marked `extra.portrait_atelier` are touched, and
// nothing that a run depends on.
import { app } from "../../../scripts/app.js";

const LINE = /^( *(?:#+ |\d+\. |- )?)(.+)$/gm;
const NOTES = new Set(["MarkdownNote", "Note"]);
let tables;

/** The table of a language, or undefined: the workflow then stays in English. */
async function tableOf(language) {
  tables ??= app.api.fetchApi("/i18n").then((reply) => reply.json());
  return (await tables)[language]?.portraitAtelier?.workflows;
}

function translateNote(text, table) {
  return text.replace(LINE, (line, mark, words) => mark + (table[words] ?? words));
}

/** The labels of sockets and promoted widgets; their `name`s are keys and stay. */
function translateSlots(owner, table) {
  for (const slot of [...(owner.inputs ?? []), ...(owner.outputs ?? [])]) {
    slot.label = table[slot.label ?? slot.name] ?? slot.label;
  }
}

/** Translate the texts of a graph, or of a subgraph, in place. */
function translate(graph, table, subgraphs) {
  for (const node of graph.nodes ?? []) {
    if (node.title) node.title = table[node.title] ?? node.title;
    if (NOTES.has(node.type) && typeof node.widgets_values?.[0] === "string") {
      node.widgets_values[0] = translateNote(node.widgets_values[0], table);
    }
    if (subgraphs.has(node.type)) translateSlots(node, table);
  }
  for (const group of graph.groups ?? []) group.title = table[group.title] ?? group.title;
}

app.registerExtension({
  name: "PortraitAtelier.WorkflowLanguage",
  async beforeConfigureGraph(graph) {
    if (!graph?.extra?.portrait_atelier) return;
    const table = await tableOf(app.extensionManager.setting.get("Comfy.Locale"));
    if (!table) return;
    const levels = graph.definitions?.subgraphs ?? [];
    const ids = new Set(levels.map((level) => level.id));
    translate(graph, table, ids);
    for (const level of levels) {
      translate(level, table, ids);
      translateSlots(level, table);
      level.name = table[level.name] ?? level.name;
    }
  },
});
