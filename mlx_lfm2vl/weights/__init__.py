"""From files to a model and back: names, safetensors, quantisation, loading, saving."""
