"""The stages in the Neural Engine's layout, from the networks' own weights: tensors (1, C, 1, S), linear layers as 1x1 convolutions.

Facts named D1 to D22 are those of docs/placement_rules.md.
"""
