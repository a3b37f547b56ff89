"""`make demo`: a pod from run to remove, by a real client, through a real containerd of its own."""
