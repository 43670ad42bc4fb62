"""Training: a network, a dataset and a config become a run, which can be resumed bit for bit.

What is chosen, and when: by default a run trains on 90 % of the training images, evaluates every
epoch on the rest (val), keeps the weights with the best accuracy there and never reads the test
set. A `final` run trains on all of them for its full length, keeps the weights that its recipe
names, and reads the test set once, after the last step; the accuracy it reports meanwhile is on a
probe of 2,000 training images without augmentation.
"""
