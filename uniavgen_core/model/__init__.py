"""The network: `DualBranchDiT`, its layers, the cross-modal interaction (docs/model.md sections 1-5, 10)."""
