"""AiiDA workchains of mimyria_wf: the order of the calculations, no physics."""
