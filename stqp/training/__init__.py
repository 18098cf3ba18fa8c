"""Train a HoVer-Net from patches: network, targets, losses, augmentation, and the run itself."""
