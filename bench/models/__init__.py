"""The networks that methods share or train: recipes, checkpoints, pipelines of diffusers, where they lie."""
