"""A trained model comes in, answers by original node id go out. One machine, without MPI."""
