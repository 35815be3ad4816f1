"""How the demo's weights are made; what nodes load stays outside."""
