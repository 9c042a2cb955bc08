"""The network: `DualBranchDiT`, its layers, and the cross-modal interaction (SPEC sections 1 to 5 and 10)."""
