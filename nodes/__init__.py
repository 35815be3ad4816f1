"""What the user drags. One file per node: schema, argument checks, one call down."""

from comfy_api.latest import ComfyExtension

from ..host import pictures
from .align_face import AlignFace
from .clip_similarity_loader import CLIPSimilarityLoader
from .consistency_feature_extract import ConsistencyFeatureExtract
from .cross_injection import LoRACrossInjection
from .decoupled_cfg import DecoupledCFG
from .decoupled_cfg_guider import DecoupledCFGGuider
from .demo_face_loader import DemoFaceLoader
from .demo_model_loader import DemoModelLoader
from .demo_picture import DemoPicture
from .face_adapter_apply import FaceAdapterApply
from .face_adapter_loader import FaceAdapterLoader
from .face_analysis_loader import FaceAnalysisLoader
from .face_identity_encode import FaceIdentityEncode
from .fastsam_loader import FastSAMLoader
from .fastsam_mask import FastSAMMask
from .fastsam_segment import FastSAMSegment
from .few_step_preset import FewStepPreset
from .load_features import LoadFeatures
from .mask_blend import FastSAMMaskBlend
from .mask_to_latent_grid import MaskToLatentGrid
from .mmfs_few_shot import MMFSFewShot
from .mmfs_loader import MMFSLoader
from .mmfs_save import MMFSSave
from .mmfs_style_prompt import MMFSStylePrompt
from .mmfs_style_seed import MMFSStyleSeed
from .mmfs_stylize import MMFSStylize
from .paste_face import PasteFace
from .pick_points import PickPoints
from .reference_weight import ReferenceWeight
from .same_noise import SameNoise
from .save_features import SaveFeatures
from .scale_power_attention import ScalePowerAttention
from .scheduled_softmax_attention import ScheduledSoftmaxAttention
from .seac_patch import SEACPatch
from .seac_report import SEACReport
from .seac_trace import SEACTrace
from .source_trajectory import SourceTrajectory
from .style_lora_train import StyleLoRATrain
from .stylegan_generate import StyleGANGenerate
from .stylegan_loader import StyleGANLoader
from .token_merge import TokenMerge

NODES = [
    DemoModelLoader,
    DemoFaceLoader,
    DemoPicture,
    ConsistencyFeatureExtract,
    TokenMerge,
    SaveFeatures,
    LoadFeatures,
    SameNoise,
    SEACPatch,
    SEACTrace,
    SEACReport,
    AlignFace,
    PasteFace,
    FaceAnalysisLoader,
    FaceAdapterLoader,
    FaceIdentityEncode,
    FaceAdapterApply,
    ScalePowerAttention,
    ScheduledSoftmaxAttention,
    StyleLoRATrain,
    SourceTrajectory,
    FastSAMMaskBlend,
    LoRACrossInjection,
    DecoupledCFG,
    DecoupledCFGGuider,
    ReferenceWeight,
    FewStepPreset,
    FastSAMLoader,
    FastSAMSegment,
    PickPoints,
    CLIPSimilarityLoader,
    FastSAMMask,
    MaskToLatentGrid,
    MMFSLoader,
    MMFSStyleSeed,
    MMFSStylePrompt,
    MMFSStylize,
    MMFSFewShot,
    MMFSSave,
    StyleGANLoader,
    StyleGANGenerate,
]


class Atelier(ComfyExtension):
    async def get_node_list(self):
        return list(NODES)


def extension() -> Atelier:
    pictures.offer()
    return Atelier()
