"""Cross-modal interaction: who looks at whom, and the two attentions that do (SPEC sections 4 and 5)."""
