"""A typing error in the editor: it is told at the node and its widget when Run is pressed."""

WRONG = """() => {
    const add = (type, values = {}) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        for (const [name, value] of Object.entries(values)) node.widgets.find(widget => widget.name === name).value = value;
        return node;
    };
    const model = add('AtelierDemoModelLoader'), prompt = add('CLIPTextEncode'), picture = add('EmptyLatentImage');
    const extract = add('AtelierConsistencyFeatureExtract'), patch = add('AtelierSEACPatch', {layers: 'u1-8, dd3'});
    const sampler = add('KSampler'), save = add('SaveLatent');
    const link = (from, slot, to, name) => from.connect(slot, to, to.inputs.findIndex(input => input.name === name));
    link(model, 1, prompt, 'clip'); link(model, 0, extract, 'model'); link(picture, 0, extract, 'latent'); link(prompt, 0, extract, 'positive');
    link(model, 0, patch, 'model'); link(extract, 0, patch, 'reference'); link(extract, 0, patch, 'source');
    link(patch, 0, sampler, 'model'); link(prompt, 0, sampler, 'positive'); link(prompt, 0, sampler, 'negative'); link(picture, 0, sampler, 'latent_image');
    link(sampler, 0, save, 'samples');
    return patch.id;
}"""


def test_a_typing_error_is_shown_at_its_widget(page):
    node = page.evaluate(WRONG)
    assert page.evaluate("app.queuePrompt(0)") is False
    page.get_by_text("SEAC Patch rejected the value for layers").wait_for()
    marked = page.evaluate("id => app.graph.getNodeById(id).inputs.filter(input => input.hasErrors).map(input => input.name)", node)
    assert marked == ["layers"]
    page.get_by_test_id("error-overlay-see-errors").click()
    page.get_by_role("button", name="Info for SEAC Patch - layers").click()
    page.get_by_text("where 'dd3' names no layer of any model. Write auto, all or a comma list").first.wait_for()
