"""Cross-modality knowledge distillation in medical images.

Train with every sequence you have. Predict with whatever the patient has.
"""

__version__ = "0.1.0"
