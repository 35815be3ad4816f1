from comfy_api.latest import io

ConsistencyFeaturesType = io.Custom("CONSISTENCY_FEATURES")
CATEGORY = "Portrait Atelier/ZePo"
MAX_SEED = 2**64 - 1
