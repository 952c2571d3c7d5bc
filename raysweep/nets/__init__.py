"""Networks: names, weights, classifiers, layers, and the cut between what is frozen and what trains."""
