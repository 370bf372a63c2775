"""distsage: GraphSAGE on graphs that outgrow one machine, on Slurm clusters."""

__version__ = "0.1.0"
