"""The small world: seeded scenes of drawn shapes, written in the formats of COCO, VQAv2 and LLaVA."""
