"""Training: a network, a dataset and a config become a run, resumable bit for bit.

What is chosen when. A run trains on 90 % of the training images, evaluates every epoch on the
rest (val), keeps the best weights by that and never reads the test set. A `final` run trains on
all of them for its fixed length, keeps the weights its recipe names, and reads the test set
once, after the last step; what it shows on the way is accuracy on a probe of 2,000 training
images as they are.
"""
