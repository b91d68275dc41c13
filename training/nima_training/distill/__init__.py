"""Distillation: train a student on a teacher's distributions over photos nobody has rated.

photos --split.py--> train | selection | test
       --views.py--> augmented uint8 views --teacher.py--> distributions   (pool.py keeps both)
       --recipe.py-> student: a stage on cached features, then the whole network
       --agreement.py-> Spearman, MAE of the mean and EMD to the teacher on held-out views
"""
