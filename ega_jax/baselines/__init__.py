"""The systems to beat, each as its authors would build it."""
