"""`uniavgen train ablations`: the paper's design against its alternatives, from one start, at equal cost."""
