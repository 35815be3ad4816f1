"""Which workflow and settings a checkpoint gets, and the table of settings in the help page of SEAC Patch."""
import re
from pathlib import Path

import pytest

from portrait_atelier.headless import AtelierError
from portrait_atelier.headless.checkpoint import Checkpoint
from portrait_atelier.headless.families import choose, require_fit, sampling
from portrait_atelier.headless.workflow import load

ROOT = Path(__file__).resolve().parents[2]
LCM15, LIGHTNING8 = "lcm-lora-sdv1-5.safetensors", "few/SDXL_Lightning_8step_lora.safetensors"


def ends(workflow):
    """(LoRA or None, KSampler's values, whether through ModelSamplingDiscrete, sizes), after checking that all links hold."""
    kinds = {}
    for entry in workflow.values():
        kinds.setdefault(entry["class_type"], []).append(entry["inputs"])
        for value in entry["inputs"].values():
            assert not isinstance(value, list) or value[0] in workflow
    sampler, = kinds["KSampler"]
    values = sampler["steps"], sampler["cfg"], sampler["sampler_name"], sampler["scheduler"], sampler["denoise"]
    sizes = {side for inputs in kinds["ImageScale"] for side in (inputs["width"], inputs["height"])}
    lora = kinds.get("LoraLoaderModelOnly", [{"lora_name": None}])[0]["lora_name"]
    return lora, values, "ModelSamplingDiscrete" in kinds, sizes


@pytest.mark.parametrize("checkpoint, loras, expected", [
    (("SD1.5", None), [LCM15], (LCM15, (4, 2, "lcm", "simple", 0.5), True, {512})),
    (("SD1.5", None), [], (None, (10, 5, "dpmpp_2m", "karras", 0.5), False, {512})),
    (("SD1.5", "LCM"), [LCM15], (None, (4, 2, "lcm", "simple", 0.5), True, {512})),
    (("SD1.5", "Hyper"), [LCM15], (None, (2, 1, "euler", "sgm_uniform", 0.5), False, {512})),
    (("SDXL", None), [LCM15, LIGHTNING8], (LIGHTNING8, (4, 1, "euler", "sgm_uniform", 0.5), False, {1024})),
    (("SDXL", None), [LCM15], (None, (10, 5, "dpmpp_2m", "karras", 0.5), False, {1024})),
    (("SDXL", "Turbo"), [], (None, (2, 1, "euler_ancestral", "sgm_uniform", 0.5), False, {512})),
    (("SDXL", "LCM"), [], (None, (4, 2, "lcm", "simple", 0.5), True, {1024})),
    (("SD2.1", None), [LCM15, LIGHTNING8], (None, (10, 5, "dpmpp_2m", "karras", 0.5), False, {512})),
    (("SD2.1", "Turbo"), [], (None, (2, 1, "euler_ancestral", "sgm_uniform", 0.5), False, {512})),
])
def test_a_checkpoint_gets_the_graph_and_the_settings_of_its_family(checkpoint, loras, expected):
    family, kind = checkpoint
    name, workflow, told = choose(Checkpoint("m.safetensors", family, "why", kind, 4 if kind else 0), loras, "models/loras", face=False)
    assert ends(workflow) == expected and "\n" not in told
    assert told.startswith(f"m.safetensors is {family} (why): workflow {name} ") and f"{expected[1][0]} steps, CFG {expected[1][1]}" in told
    assert (expected[0] or "without its LoRA") in told


def test_the_first_example_of_all_is_the_shipped_graph_itself():
    """SD1.5 with its LCM-LoRA."""
    name, workflow, _ = choose(Checkpoint("m.safetensors", "SD1.5", ""), [LCM15], "", face=False)
    assert name == "zepo_sd15_lcm" and workflow == load(name)


def test_a_missing_lora_is_told_with_file_folder_and_page():
    told = choose(Checkpoint("m.safetensors", "SDXL", ""), [], "/there/loras", face=False)[2]
    assert "sdxl_lightning_4step_lora.safetensors, which is not in /there/loras" in told and "https://huggingface.co/ByteDance/SDXL-Lightning" in told
    assert "https" not in choose(Checkpoint("m.safetensors", "SD2.1", ""), [], "/there/loras", face=False)[2]


def test_sd21_that_predicts_v_wants_768_pixels_and_others_get_a_caution():
    assert ends(choose(Checkpoint("m.safetensors", "SD2.1", "", v=True), [], "", face=False)[1])[3] == {768}
    assert "predicts v" in choose(Checkpoint("m.safetensors", "SD1.5", "", v=True), [LCM15], "", face=False)[2]


@pytest.mark.parametrize("family, kind, loras, name, sampler, lcm", [
    ("SD1.5", None, [LCM15], "fastface_both_sd15_lcm", "lcm", True), ("SD1.5", "Hyper", [], "fastface_both_sd15_lcm", "euler", False),
    ("SDXL", "Turbo", [], "fastface_both_sdxl_hyper", "euler_ancestral", False), ("SDXL", "LCM", [], "fastface_both_sdxl_hyper", "lcm", True),
    ("SDXL", None, ["sdxl_lightning_4step_lora.safetensors", "Hyper-SDXL-4steps-lora.safetensors"], "fastface_both_sdxl_hyper", "euler", False),
    ("SDXL", None, ["sdxl_lightning_4step_lora.safetensors"], "fastface_both_sdxl_hyper", "euler", False),
])
def test_a_face_gets_a_fastface_graph_sampled_as_its_model_wants(family, kind, loras, name, sampler, lcm):
    found, workflow, _ = choose(Checkpoint("m.safetensors", family, "", kind, 4 if kind else 0), loras, "", face=True)
    kinds = {entry["class_type"]: entry["inputs"] for entry in workflow.values()}
    assert found == name and kinds["KSampler"]["sampler_name"] == sampler and ("ModelSamplingDiscrete" in kinds) == lcm
    assert kinds["KSampler"]["steps"] == 4 and (kinds["EmptyLatentImage"]["width"] == 1024) == (family == "SDXL" and kind != "Turbo")
    assert all(value[0] in workflow for inputs in kinds.values() for value in inputs.values() if isinstance(value, list))
    assert [inputs["lora_name"] for inputs in [kinds.get("LoraLoaderModelOnly")] if inputs] == loras[-1:]


def test_the_timesteps_of_lcm_come_after_the_lora_for_everything_that_takes_the_model():
    workflow = choose(Checkpoint("m.safetensors", "SDXL", ""), ["lcm-lora-sdxl.safetensors"], "", face=False)[1]
    node, = [node for node, entry in workflow.items() if entry["class_type"] == "ModelSamplingDiscrete"]
    loader, = [node for node, entry in workflow.items() if entry["class_type"] == "LoraLoaderModelOnly"]
    takers = [entry["class_type"] for entry in workflow.values() if entry["inputs"].get("model") == [node, 0]]
    assert workflow[node]["inputs"]["model"] == [loader, 0]
    assert sorted(takers) == ["AtelierConsistencyFeatureExtract", "AtelierConsistencyFeatureExtract", "AtelierSEACPatch"]


@pytest.mark.parametrize("family, kind, loras, told", [
    ("SD2.1", None, [], "SD1.5 and SDXL only"), ("SDXL", "DMD2", [], "of the kind DMD2"),
    ("SDXL", None, [LIGHTNING8], "the LoRA Hyper-SDXL-4steps-lora.safetensors, which is not in here"), ("SD1.5", None, [], LCM15),
])
def test_faces_that_cannot_be_drawn(family, kind, loras, told):
    with pytest.raises(AtelierError, match=told):
        choose(Checkpoint("m.safetensors", family, "", kind), loras, "here", face=True)


@pytest.mark.parametrize("family, workflow, fits", [
    ("SDXL", "zepo_sd15_lcm", False), ("SD1.5", "zepo_sd15_lcm", True), ("SD1.5", "fastface_both_sdxl_hyper", False),
    ("SD1.5", "diffstyler_sd21_global", True), ("SDXL", "zepo_demo", True), ("SDXL", None, True),
])
def test_a_workflow_with_the_lora_of_another_family_is_refused(family, workflow, fits):
    checkpoint = Checkpoint("m.safetensors", family, "")
    if fits:
        return require_fit(checkpoint, workflow)
    with pytest.raises(AtelierError, match="leave out --workflow"):
        require_fit(checkpoint, workflow)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_help_page_of_seac_patch_has_these_settings(language):
    page = (ROOT / "web" / "docs" / "AtelierSEACPatch" / f"{language}.md").read_text(encoding="utf-8")
    kinds = {"LCM-LoRA": ("LCM", 4), "SDXL-Lightning 4-step": ("Lightning", 4), "SDXL-Lightning 8-step": ("Lightning", 8), "SDXL-Turbo": ("Turbo", 4),
             "Hyper-SD 4-step": ("Hyper", 4), "Hyper-SD 8-step": ("Hyper", 8), "DMD2 4-step": ("DMD2", 4),
             {"en": "no few-step weights", "zh": "没有少步权重"}[language]: ("ordinary", 0)}
    for name, kind in kinds.items():
        values = sampling(*kind)
        said = [line.split(name)[1] for line in page.splitlines() if name in line and f"`{values.scheduler}`" in line]
        assert len(said) == 1, name
        numbers = re.findall(r"(?<![\d.])\d+(?![\d.])", said[0].replace("SD1.5, SDXL", ""))
        assert numbers[:2] == [str(values.steps), str(values.cfg)], name
        assert f"`{values.sampler}`" in said[0] and f"`{values.scheduler}`" in said[0], name
