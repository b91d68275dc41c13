"""Distillation: train a student on a teacher's answers to photos nobody has rated.

photos.py    photos -> train | selection | test, look-alikes together
views.py     a training photo -> augmented uint8 views; pool.py keeps them in a memory map
prune.py     the teacher -> a student with fewer channels; refit.py fits what stays
matching.py  the loss: the teacher's maps and ratings, computed on every batch
stages.py    one stage of training that resumes; recipe.py runs two, on small views, then as served
half.py      weights -> values that FP16 holds exactly
agreement.py student and teacher (teacher.py) on held-out views: Spearman, MAE of the mean, EMD
plan.py      what a work directory was made from
"""
