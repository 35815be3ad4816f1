from comfy_api.latest import io

ConsistencyFeaturesType = io.Custom("CONSISTENCY_FEATURES")
CATEGORY = "Portrait Atelier/ZePo"
SEACTraceType = io.Custom("ATELIER_SEAC_TRACE")  # host.seac_trace.Trace
MAX_SEED = 2**64 - 1

TrajectoryType = io.Custom("ATELIER_TRAJECTORY")
BranchesType = io.Custom("ATELIER_BRANCHES")
DIFFSTYLER = "Portrait Atelier/DiffStyler"

FaceAnalysisType = io.Custom("FACE_ANALYSIS")  # any object with .get(bgr) -> faces with bbox, kps, normed_embedding, det_score
FaceAdapterType = io.Custom("FACE_ADAPTER")
FaceIdentityType = io.Custom("FACE_IDENTITY")
INSIGHTFACE = io.Custom("INSIGHTFACE"), io.Custom("FACEANALYSIS")  # other packs' sockets for an analysis
FASTFACE = "Portrait Atelier/FastFace"

FaceLandmarksType = io.Custom("FACE_LANDMARKS")  # of ComfyUI's MediaPipe nodes
FaceTransformType = io.Custom("FACE_TRANSFORM")  # identity.alignment.FaceTransforms
FACES = "Portrait Atelier/Faces"

FastSAMModelType = io.Custom("FASTSAM_MODEL")
FastSAMResultType = io.Custom("FASTSAM_RESULT")
GuidanceType = io.Custom("ATELIER_GUIDANCE")  # any object with image_features(pictures [h, w, RGB]) and text_features(texts): [n, D], one space
FASTSAM = "Portrait Atelier/FastSAM"

MMFSModelType = io.Custom("MMFS_MODEL")
MMFSStyleType = io.Custom("MMFS_STYLE")
StyleGANModelType = io.Custom("STYLEGAN_MODEL")
MMFS = "Portrait Atelier/MMFS"


def seed_input(name: str, tooltip: str, default: int = 0) -> io.Int.Input:
    return io.Int.Input(name, default=default, min=0, max=MAX_SEED, control_after_generate=False, tooltip=tooltip)
