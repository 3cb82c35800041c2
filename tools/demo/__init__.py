"""The bundled demo model: drawn, trained, scored."""
