"""From a model's folder to weights in place: config.json, safetensors, the weight map."""
