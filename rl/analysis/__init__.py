"""Where an answer looks: FOCUS's attention split and heat-maps, LOCUS's Attention-in-Box, from one pass over the layers.

sample ─► prompts (category in | out) ─► answers (own | truth) ─► stream: [H, R, L] of one layer ─► two rows [L] a layer
                                                                                                       │
      analysis.json, split.svg, heatmaps/, console ◄── write ◄── split, in_box, heatmap ◄── token classes, grid
"""
