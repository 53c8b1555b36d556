"""The real ones: each optional or heavy library lives in one adapter. Only ``wiring`` names them."""
