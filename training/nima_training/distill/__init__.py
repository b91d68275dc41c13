"""Distillation: train a student on a teacher's distributions over photos nobody has rated.

photos --split.py--> train | selection | test
       --views.py, stream.py--> augmented uint8 views, each made once and shown once
       --teacher.py--> distributions and feature maps, computed beside the student's step
       --fit.py--> the head and the hint adapters in closed form
       --stages.py-> the whole network: first on small views, then at full size
       --agreement.py-> Spearman, MAE of the mean and EMD to the teacher on held-out views
"""
