"""How backends run: layer by layer, with a calibration set, in gptqmodel, or in an old library."""
