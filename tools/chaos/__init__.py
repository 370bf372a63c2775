"""`make chaos`: faults at random moments of training jobs, and proof that no run is lost by one.

__main__.py  the command line: rounds, one after the other
site.py      the emulated cluster, a small disk for run directories, the parts of a graph
run.py       one training run, through as many jobs as it takes
moments.py   when a fault happens: during start-up, training, or the writing of a checkpoint
faults.py    what can go wrong: how it is brought about and put right again
rounds.py    one round: a run, a fault, the run's end, judged beside the undisturbed run
report.py    what all rounds came to: a table for people, JSON for programs
"""
