# %% [markdown]
# # Ten kinds of pictures, 150,690 numbers
#
# This notebook trains a small neural network to tell ten kinds of pictures apart: aeroplanes,
# cats, ships and so on, each 32 x 32 pixels. They are CIFAR-10, which has been the field's
# standard exercise since 2009. The network is `OptimizedCIFAR10Net200K`. It may have at most
# 200,000 parameters, which are the numbers that training finds. It has 150,690.
#
# You will see, in this order: the pictures; the network and what it costs; how pictures are
# varied while it learns; the training; how good the network is on pictures that it has never
# seen; where it is wrong; and how to keep it.
#
# Run the cells from top to bottom. On two cores of a CPU that takes about five to ten minutes,
# most of it in one cell, which shows how far it is. No GPU is needed. One is used if there is one.
#
# Everything that works here is in the package `sprat`. The notebook only calls it.

# %% [markdown]
# ## Install
#
# If the package is not here yet, as on Colab, this installs it: from the checkout that the
# notebook lies in, or else by its name. On Linux that may fetch a few gigabytes for GPUs; the
# README says how to do without.

# %%
import importlib.util
from pathlib import Path

if importlib.util.find_spec("sprat") is None:
    source = ".." if Path("../pyproject.toml").exists() else "sprat"
    # %pip install --quiet {source}
    importlib.invalidate_caches()

# %% [markdown]
# ## Choose
#
# These are the choices. They make the run whose results you see below.
#
# - `recipe` names the settings of the training. `sprint` is the fastest: 12 epochs, that is, it
#   looks at all training pictures 12 times. `quick` and `accurate` take longer and get further.
# - `changes` are settings that shall differ from the recipe's. The recipe evaluates its progress at
#   the end alone, to save seconds; here it does after every epoch, so that there is a curve to
#   look at. The network that comes out is the same. For a first look, shorten the run with
#   `{"epochs": 2, "optim.warmup_epochs": 0.5, "train_images": 10_000}`.
# - `dataset` is what to learn. CIFAR-10 is fetched once (170 MB) unless it is here already.
#   `"shapes10"` needs no network: it is drawn by the package.
# - `views` is how many times the network may look at each test picture near the end: 2, 6, 8, 10
#   or 26.
# - `output` is the folder that the results go to.

# %% tags=["parameters"]
recipe = "sprint"
changes = {"evaluate_every": 1}
dataset = "cifar10"
views = 8
output = "."

# %%
import shutil

import torch
from IPython.display import Image

import sprat
from sprat.budget import check_limits, summarize
from sprat.checkpoint import load_model
from sprat.display import (
    load_shown,
    make_console,
    print_evaluation,
    print_summary,
    print_verdicts,
    progress_bar,
)
from sprat.evaluation.evaluate import evaluate, predict_probabilities
from sprat.figures.data import calibration, confusion, worst_mistakes
from sprat.figures.png import (
    draw_calibration,
    draw_confusion,
    draw_contact_sheet,
    draw_mistakes,
    draw_preview,
)
from sprat.models import build_network
from sprat.training.images import preview_augmentation

settings = sprat.load_recipe(recipe).changed(changes).changed({"dataset": dataset, "final": True})
output = Path(output)
pictures = output / "pictures"
console = make_console()

# %% [markdown]
# ## The pictures
#
# Every row is one class, with its name on the left. Look at how different the pictures of one
# class are, and how little there is to see in 32 x 32 pixels. Which rows would *you* mix up?
#
# The training pictures are what the network learns from. The test pictures are kept apart. They
# are looked at when everything is decided, to learn what the network makes of pictures that are
# new to it.

# %%
data = load_shown(console, settings.dataset, None, settings.pictures)
title = f"{data.name}: {len(data.train):,} training, {len(data.test):,} test images"
Image(draw_contact_sheet(data.train, title, pictures / "data.png", columns=8))

# %% [markdown]
# ## The network and its budget
#
# The table has a row for each part of the network, from the picture at the top to the ten answers
# at the bottom. Follow the column `output`: 20 x 32 x 32 means 20 channels of 32 x 32 pixels.
# On the way down the pictures get smaller and the channels more: less of *where*, more of *what*.
#
# - *Parameters* are what the budget is about. Most lie in the last blocks, where the channels are
#   many. They are few because each convolution is split in two: one looks around within each
#   channel (depthwise), one mixes the channels at each pixel (pointwise).
# - *MACs* are multiplications with an addition each: the work for one picture.
# - *Field* is how many pixels of the picture, across, one value can depend on. The last block's
#   109 is more than the 32 that there are, so it can see all of the picture.
# - *Arena* is the memory that intermediate results need, for one picture.
#
# The last lines hold the network to two limits: at most 200,000 parameters, and a field of at
# least 44 pixels.

# %%
network = build_network(settings.model, len(data.train.classes))
summary = summarize(network, data.train.images.shape[-1], depth=2)
print_summary(console, summary)
print()
limits = {"max_parameters": 200_000, "min_receptive_field": 44}
print_verdicts(console, summary.model, check_limits(limits, summary))

# %% [markdown]
# ## Varied pictures
#
# A network that sees the same pictures again and again learns them by heart, which is of no use
# with new ones. So each picture is varied by chance each time. This is called augmentation.
#
# The first rows show a few pictures as they are, then what this recipe does to them: it mirrors
# half of them and moves each by up to 4 pixels. Look at whether you can still tell what they show.
# You should.
#
# The last three rows show stronger medicine, for trainings that are many times longer. It takes
# pictures of several classes and asks for several answers, in the shares below each:
#
# - *MixUp* lays one picture over another ([arXiv 1710.09412](https://arxiv.org/abs/1710.09412)).
# - *CutMix* pastes a box of one into another ([arXiv 1905.04899](https://arxiv.org/abs/1905.04899)).
# - *RICAP* patches four together ([arXiv 1811.09030](https://arxiv.org/abs/1811.09030)).
#
# Twelve epochs are too few to learn by heart, so `sprint` leaves these three out. The recipe
# `reference` has them.

# %%
mixing = {"mixing.mixup": 0.3, "mixing.cutmix": 0.3, "mixing.ricap": 0.2}
rows = preview_augmentation(settings.changed(mixing), data.train, columns=6)
title = f"what {recipe} does, and three ways of mixing"
Image(draw_preview(rows, title, pictures / "augmentation.png"))

# %% [markdown]
# ## Training
#
# In each step the network looks at 128 pictures and its parameters are changed a little, so that
# it would have been less wrong about them. The *loss* says how wrong it is: watch it fall.
# *Accuracy* is the share of pictures that it names rightly. While it learns, that is measured on
# 2,000 training pictures, so it is a little flattering; the test pictures stay untouched until the
# last step is done. (*EMA accuracy* would be that of an average of the weights, which this recipe
# does without.)
#
# Everything is kept in a new folder under `runs/`. If the training is interrupted,
# `sprat.resume(FOLDER)` goes on where it was, to the same result.

# %%
run = sprat.train(recipe, changes | {"final": True}, dataset=data)

# %% [markdown]
# ## Curves
#
# At the top the loss, in the middle the accuracy, at the bottom the learning rate, which is how
# large the steps are: it rises at first, then falls to nothing. Look at how the last few epochs,
# with their ever smaller steps, still make the network better. The star is the accuracy on the
# test pictures. It lies below the curve, since they are new to the network.
#
# The picture is kept as `Result.png`.

# %%
Image(shutil.copy(run.folder / "curves.png", output / "Result.png"))

# %% [markdown]
# ## How good it is
#
# This is the evaluation on the test pictures, made once, after the last step. Nothing about the
# network was chosen by it, so it shows what to expect of other pictures of this kind.
#
# - *Accuracy* comes with a 95 % interval: with other test pictures it might as well lie elsewhere
#   in there. Two networks whose intervals overlap much may be equally good.
# - The *mirrored view* is explained below.
# - The *bars* show each class. Look at which is the hardest. Did you expect it?

# %%
print_evaluation(console, run.results["test"])

# %% [markdown]
# ### What it takes for what
#
# Each row is what the pictures are, each column what the network named them. Numbers on the
# diagonal are right answers. The darker a cell beside it, the more often that mistake is made.
# Look for pairs that are dark on both sides of the diagonal: the network mixes up these two.

# %%
Image(draw_confusion(confusion(run.results["test"]), pictures / "confusion.png"))

# %% [markdown]
# ### Whether it knows when it does not know
#
# With each answer the network says how sure it is, its confidence. If it is honest, it is right
# in 80 % of the cases in which it is 80 % sure. The dots would then lie on the dotted line. A dot
# above the line means that it is too modest there, a dot below that it is too sure of itself. The
# grey bars show how often it has which confidence.

# %%
model = load_model(run.folder)
with progress_bar(console, "looking at the test pictures", len(data.test)) as progress:
    probabilities = predict_probabilities(
        model.network, data.test.images, model.normalization, progress=progress
    )
bins = calibration(probabilities, data.test.targets)
Image(draw_calibration(bins, pictures / "calibration.png"))

# %% [markdown]
# ## Looking more than once
#
# A mirrored cat is a cat. So the network may look at each picture several times, as it is,
# mirrored, moved by a pixel, and the answers are averaged. This is called test-time augmentation.
# It costs as many times the work as there are views. Look at whether it is worth it.
#
# Which views are used was chosen on training pictures that had been held out, not on these. `p`
# is how likely so large a difference would come by chance alone if the views were of no use.

# %%
with progress_bar(console, f"looking {views} times", views * len(data.test)) as progress:
    again = evaluate(model.network, data.test, model.normalization, views, progress)
print(f"1 view    {100 * again['top1']:.2f} %")
print(f"2 views   {100 * run.results['test']['tta_top1']:.2f} %")
print(f"{views} views   {100 * again['tta_top1']:.2f} %  (against 1: p = {again['tta_p']:.2g})")

# %% [markdown]
# ## The worst mistakes
#
# These test pictures were named wrongly, and the network was most sure of it. Below each is what
# it is, what the network said, and how sure it was. Look at each: could you have told?

# %%
title = "wrong, and most sure of it"
mistakes = worst_mistakes(data.test, probabilities, most=24)
Image(draw_mistakes(mistakes, title, pictures / "mistakes.png"))

# %% [markdown]
# ## Keep it
#
# Two files, beside `Result.png`:
#
# - `best_model_200k.pth` holds the weights for PyTorch. The second cell shows how they are read.
# - `training_results_200k.json` holds all figures of this run, and the machine, the versions and
#   the time that they took.
#
# The run's folder holds the model in one file with all that it takes to use it, the names of the
# classes included: `model.safetensors`.

# %%
torch.save(model.network.state_dict(), output / "best_model_200k.pth")
shutil.copy(run.folder / "results.json", output / "training_results_200k.json")

# %%
weights = torch.load(output / "best_model_200k.pth", weights_only=True)
network.load_state_dict(weights)

# %% [markdown]
# And this names pictures. It takes files too, of any size: `classifier("cat.jpg")`.

# %%
classifier = sprat.load(run.folder)
labels, _ = classifier(data.test.images[:5])
print("named:", ", ".join(labels))
print("are:  ", ", ".join(data.test.classes[target] for target in data.test.targets[:5]))

# %% [markdown]
# ## Where to go on
#
# - Change something under *Choose* and run all cells again. What does half of the training
#   pictures cost? What do twice the epochs bring?
# - Train on [your own pictures](../docs/how-to/own-pictures.md): a folder for each class.
# - Read [how the numbers are made](../docs/explanation/honest-protocol.md), and why they can be
#   believed.
# - See [how this network compares with others](../docs/explanation/other-networks.md), or
#   [serve it](../docs/how-to/serve.md) as a page to drop pictures on.
# - The same from a terminal: `sprat train --recipe sprint --final --dataset cifar10`; then
#   `sprat report FOLDER` makes one page of the run, to send or to print.
