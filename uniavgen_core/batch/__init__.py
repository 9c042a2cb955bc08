"""Many clips from one list, made in one process or by workers on Ray; run again, it goes on."""
