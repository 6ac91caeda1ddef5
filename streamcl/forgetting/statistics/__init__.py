"""Head statistics kept on disk by class or subject, so that these can be erased without their samples."""
