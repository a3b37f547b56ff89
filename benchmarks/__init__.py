"""`make bench`: the same work through the same containerd, by Manor and by its peers, in turns.

stage      one private containerd with every handler, and what each work needs on it
works      the works: how one sample of each is taken
oci        the commands: manor-oci beside runc and crun
logs       lines from a container into the file that the kubelet reads
own        works in which Manor is measured against itself, and against bare Python
processes  what processes hold and spend
measure    taking samples in turns, medians, rows
report     the table and latest.json
"""
