"""Several processes of one run: told by the environment where a launcher has started them, else started here.

places     which of how many processes this one is, as torchrun, accelerate, srun or mpirun say it
workers    the same command in N processes of this machine, watched until all have ended
"""
