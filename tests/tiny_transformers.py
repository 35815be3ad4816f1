"""ComfyUI's own transformer classes at tiny width with random weights, for tests on any machine."""

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models as supported
import torch

TEXT, POOLED = 32, 24  # channels of the prompts here
NEXT = dict(
    image_model="lumina2",
    patch_size=2,
    in_channels=16,
    dim=48,
    n_layers=3,
    n_refiner_layers=1,
    n_heads=4,
    multiple_of=16,
    ffn_dim_multiplier=1.0,
    qk_norm=True,
    cap_feat_dim=TEXT,
    axes_dims=[4, 4, 4],
    axes_lens=[64, 64, 64],
    rope_theta=256.0,
)
STREAMS = dict(
    context_in_dim=TEXT,
    hidden_size=48,
    mlp_ratio=2.0,
    num_heads=4,
    depth=2,
    depth_single_blocks=2,
    axes_dim=[4, 4, 4],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    txt_ids_dims=[],
)
FAMILIES = {
    "zimage": (supported.ZImage, dict(NEXT, n_kv_heads=4, pad_tokens_multiple=8)),
    "lumina": (supported.Lumina2, dict(NEXT, n_kv_heads=2)),
    "flux": (
        supported.Flux,
        dict(STREAMS, image_model="flux", in_channels=16, out_channels=16, vec_in_dim=POOLED, guidance_embed=True),
    ),
    "flux2": (
        supported.Flux2,
        dict(
            STREAMS,
            image_model="flux2",
            in_channels=128,
            out_channels=128,
            vec_in_dim=None,
            guidance_embed=False,
            patch_size=1,
            qkv_bias=False,
            txt_ids_dims=[3],
            global_modulation=True,
            mlp_silu_act=True,
            ops_bias=False,
            default_ref_method="index",
            ref_index_scale=10.0,
            axes_dim=[4, 4, 4, 4],
            hidden_size=32,
            num_heads=2,
        ),
    ),
    "chroma": (
        supported.Chroma,
        dict(
            STREAMS,
            image_model="chroma",
            in_channels=64,
            out_channels=64,
            in_dim=64,
            out_dim=48,
            hidden_dim=32,
            n_layers=1,
            vec_in_dim=None,
        ),
    ),
    "qwen": (
        supported.QwenImage,
        dict(
            image_model="qwen_image",
            patch_size=2,
            in_channels=64,
            out_channels=16,
            num_layers=3,
            attention_head_dim=12,
            num_attention_heads=4,
            joint_attention_dim=TEXT,
            axes_dims_rope=(4, 4, 4),
        ),
    ),
    "krea2": (
        supported.Krea2,
        dict(
            image_model="krea2",
            features=64,
            tdim=32,
            txtdim=TEXT // 2,
            heads=4,
            kvheads=2,
            multiplier=1,
            layers=3,
            txtlayers=2,
            txtheads=4,
            txtkvheads=4,
            default_ref_method="index",
        ),
    ),
    "sd3": (
        supported.SD3,
        dict(
            in_channels=16,
            patch_size=2,
            depth=2,
            num_blocks=3,
            input_size=None,
            adm_in_channels=POOLED,
            context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": TEXT, "out_features": 128}},
            num_patches=1024,
            pos_embed_max_size=32,
            pos_embed_scaling_factor=None,
            qk_norm="rms",
            x_block_self_attn_layers=[0],
        ),
    ),
}


def build(family, seed=0):
    config, spec = FAMILIES[family]
    config = type(f"Tiny{config.__name__}", (config,), {"unet_config": {}})
    model = config(dict(spec, dtype=torch.float32)).get_model({}, device=torch.device("cpu")).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.diffusion_model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.data.normal_(float(name.endswith("weight")), 0.2, generator=generator)
        parameter.requires_grad_(False)
    if family == "sd3":
        model.diffusion_model.pos_embed.normal_(0, 0.5, generator=generator)
    management = comfy.model_management
    return comfy.model_patcher.ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())
