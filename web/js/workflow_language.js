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

/** Translate the texts of a graph, or of a subgraph, in place. */
function translate(graph, table) {
  for (const node of graph.nodes ?? []) {
    if (node.title) node.title = table[node.title] ?? node.title;
    if (NOTES.has(node.type) && typeof node.widgets_values?.[0] === "string") {
      node.widgets_values[0] = translateNote(node.widgets_values[0], table);
    }
  }
  for (const group of graph.groups ?? []) group.title = table[group.title] ?? group.title;
}

/** A subgraph's own name, and the labels of its sockets and promoted widgets; their `name`s are keys and stay. */
function translateFace(subgraph, table) {
  subgraph.name = table[subgraph.name] ?? subgraph.name;
  for (const slot of [...(subgraph.inputs ?? []), ...(subgraph.outputs ?? [])]) {
    const shown = table[slot.label ?? slot.name];
    if (shown) slot.label = shown;
  }
}

app.registerExtension({
  name: "PortraitAtelier.WorkflowLanguage",
  async beforeConfigureGraph(graph) {
    if (!graph?.extra?.portrait_atelier) return;
    const table = await tableOf(app.extensionManager.setting.get("Comfy.Locale"));
    if (!table) return;
    translate(graph, table);
    for (const subgraph of graph.definitions?.subgraphs ?? []) {
      translate(subgraph, table);
      translateFace(subgraph, table);
    }
  },
});
