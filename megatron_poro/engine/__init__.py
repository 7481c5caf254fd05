"""The only importer of megatron.core: platform, launch, groups, model, optimizer, step, checkpoint."""
