"""The only place that knows ComfyUI's internals. Never imports comfy_api: nodes are somebody else's business."""
