# %% [markdown]
# # Ten classes of pictures, 150,690 parameters
#
# This notebook trains a small neural network to classify pictures of 32 x 32 pixels: airplanes,
# cats, ships and seven more classes. The pictures are CIFAR-10, a standard benchmark since 2009.
# The network is `OptimizedCIFAR10Net200K`. Its budget is 200,000 parameters (the numbers that
# training adjusts), and it uses 150,690.
#
# In this order, you will see the pictures; the network and its costs; how training varies the
# pictures; the training itself; the accuracy on pictures that the network has never seen, and its
# mistakes; a network with fewer parameters that is more accurate; and a search for a network that
# fits a budget of your own.
#
# Run the cells from top to bottom. On a CPU with two cores that takes about half an hour. Three
# cells take nearly all of it, and each shows its progress. No GPU is needed; if there is one, it is
# used.
#
# The work is done by the package `sprat`; the notebook only calls it.

# %% [markdown]
# ## Install
#
# If the package is not installed yet, as on Colab, this cell installs it: from the checkout that
# contains the notebook, or else by name. On Linux, pip may download several gigabytes for GPUs; the
# README shows how to install without them.

# %%
import importlib.util
from pathlib import Path

if importlib.util.find_spec("sprat") is None or importlib.util.find_spec("optuna") is None:
    source = ".." if Path("../pyproject.toml").exists() else "sprat"
    # %pip install --quiet {source}[search]
    importlib.invalidate_caches()

# %% [markdown]
# ## Choose
#
# The outputs below come from a run with these choices.
#
# - `recipe` is the name of a file of settings. `sprint` is the fastest: 12 epochs, which means that
#   the network sees every training picture 12 times. `quick` and `accurate` take longer and reach
#   a higher accuracy.
# - `changes` are settings that differ from the recipe's. To save time, the recipe measures the
#   accuracy only at the end; here it is measured after every epoch, so that there is a curve to
#   look at. This does not affect the trained network. For a quick first look, use
#   `{"epochs": 2, "optim.warmup_epochs": 0.5, "train_images": 10_000}`.
# - `dataset` is what to learn. CIFAR-10 is downloaded once (170 MB) unless it is already there.
#   `"shapes10"` needs no download: the package draws it.
# - `views` is the number of variants of each test picture for test-time augmentation: 2, 6, 8, 10
#   or 26.
# - `budget` is what the search near the end may spend: the most parameters and multiplications
#   that its network may have, and the time.
# - `output` is the folder for the results.

# %% tags=["parameters"]
recipe = "sprint"
changes = {"evaluate_every": 1}
dataset = "cifar10"
views = 8
budget = {"max_parameters": "20k", "max_macs": "5M", "time": "10m"}
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
from sprat.evaluation.evaluate import evaluate, mcnemar, predict_probabilities
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

changes = changes | {"final": True}  # train on all training images, read the test set once
settings = sprat.load_recipe(recipe).changed(changes | {"dataset": dataset})
output = Path(output)
pictures = output / "pictures"
console = make_console()

# %% [markdown]
# ## The pictures
#
# Each row is one class, with its name on the left. Notice how much the pictures of a class differ,
# and how little there is to see in 32 x 32 pixels. Which classes would *you* confuse?
#
# The network learns from the training pictures only. The test pictures are kept apart until every
# decision has been made. They then show how well the network does on new pictures.

# %%
data = load_shown(console, settings.dataset, None, settings.pictures)
title = f"{data.name}: {len(data.train):,} training, {len(data.test):,} test images"
Image(draw_contact_sheet(data.train, title, pictures / "data.png", columns=8))

# %% [markdown]
# ## The network and its budget
#
# The table has a row for each part of the network, from the picture at the top to the ten scores at
# the bottom. Follow the column `output`: 20 x 32 x 32 means 20 channels of 32 x 32 pixels. From top
# to bottom, the resolution falls and the number of channels grows: less about *where*, more about
# *what*.
#
# - *Parameters* are what the budget limits. Most are in the last blocks, which have the most
#   channels. There are few of them because every convolution is split in two: one looks at the
#   neighbouring pixels within each channel (depthwise), the other combines the channels at each
#   pixel (pointwise).
# - *MACs* are multiply-accumulate operations: the work needed for one picture.
# - *Field* is the receptive field: the width, in pixels, of the part of the picture that one value
#   can depend on. The last block's field of 109 pixels covers the whole picture.
# - *Arena* is the memory for intermediate results when one picture is classified.
#
# The last lines check two limits: at most 200,000 parameters, and a receptive field of at least 44
# pixels.

# %%
network = build_network(settings.model, len(data.train.classes))
summary = summarize(network, data.train.images.shape[-1], depth=2)
print_summary(console, summary)
print()
limits = {"max_parameters": 200_000, "min_receptive_field": 44}
print_verdicts(console, summary.model, check_limits(limits, summary))

# %% [markdown]
# ## Augmentation
#
# A network that sees the same pictures again and again memorizes them, which does not help with new
# ones. So each picture is changed at random every time it is used. This is called augmentation.
#
# The first rows show some pictures as they are, followed by what this recipe does to them: it
# mirrors half of them and shifts each by up to 4 pixels. You should still recognize every picture.
#
# The last three rows show stronger augmentation, for much longer training. It combines pictures of
# several classes, and the network has to predict each class with the share printed below:
#
# - *MixUp* blends two pictures ([arXiv 1710.09412](https://arxiv.org/abs/1710.09412)).
# - *CutMix* pastes a rectangle from one picture into another
#   ([arXiv 1905.04899](https://arxiv.org/abs/1905.04899)).
# - *RICAP* combines parts of four pictures ([arXiv 1811.09030](https://arxiv.org/abs/1811.09030)).
#
# Twelve epochs are too few to memorize anything, so `sprint` does not use these three. The recipe
# `reference` does.

# %%
mixing = {"mixing.mixup": 0.3, "mixing.cutmix": 0.3, "mixing.ricap": 0.2}
rows = preview_augmentation(settings.changed(mixing), data.train, columns=6)
title = f"augmentation of {recipe}, and three kinds of mixing"
Image(draw_preview(rows, title, pictures / "augmentation.png"))

# %% [markdown]
# ## Training
#
# In each step, the network classifies 128 pictures, and its parameters are then changed a little so
# that it would have been less wrong. The *loss* measures how wrong it is: watch it fall. *Accuracy*
# is the share of pictures that it classifies correctly. During training it is measured on 2,000
# training pictures, so it is slightly too high; the test pictures are not used before the last
# step. (*EMA accuracy* is that of a moving average of the weights, which this recipe does not use.)
#
# All results are in a new folder in `runs/`. If training is interrupted, `sprat.resume(FOLDER)`
# continues it, with the same result as without the interruption.

# %%
run = sprat.train(recipe, changes, dataset=data)

# %% [markdown]
# ## Curves
#
# From top to bottom: the loss, the accuracy, and the learning rate, which sets the size of the
# steps. It rises at first and then falls to zero. Notice how much the last few epochs, with their
# ever smaller steps, still improve the network. The star is the accuracy on the test pictures. It
# is below the curve because these pictures are new to the network.
#
# The chart is saved as `Result.png`.

# %%
Image(shutil.copy(run.folder / "curves.png", output / "Result.png"))

# %% [markdown]
# ## Accuracy on the test pictures
#
# The network was evaluated on the test pictures once, after the last step. No decision was based on
# them, so this is the accuracy to expect on other pictures of this kind.
#
# - *Accuracy* has a 95 % confidence interval: with other test pictures, it could be anywhere in it.
#   Two networks whose intervals overlap widely may be equally good.
# - The *mirrored view* is explained further below.
# - The *bars* show each class. Which one is the hardest? Did you expect that?

# %%
print_evaluation(console, run.results["test"])

# %% [markdown]
# ### Which classes are confused
#
# A row is a true class and a column is a predicted class, so correct predictions are on the
# diagonal. The darker another cell, the more common that mistake. Look for pairs of dark cells on
# opposite sides of the diagonal: the network confuses these two classes in both directions.

# %%
Image(draw_confusion(confusion(run.results["test"]), pictures / "confusion.png"))

# %% [markdown]
# ### Calibration
#
# The network reports a confidence with each prediction. It is calibrated if 80 % of the predictions
# made with a confidence of 80 % are correct. The points are then on the dotted line. Points above
# the line mean that it is underconfident, points below it that it is overconfident. The grey bars
# show how often each confidence occurs.

# %%
model = load_model(run.folder)
with progress_bar(console, "classifying the test pictures", len(data.test)) as progress:
    probabilities = predict_probabilities(
        model.network, data.test.images, model.normalization, progress=progress
    )
bins = calibration(probabilities, data.test.targets)
Image(draw_calibration(bins, pictures / "calibration.png"))

# %% [markdown]
# ## Test-time augmentation
#
# A mirrored cat is still a cat. So the network can classify several variants (views) of the same
# picture, such as the original, its mirror image and small shifts, and average the predictions.
# This is called test-time augmentation. Its cost grows with the number of views. Is it worth it?
#
# The views were chosen on held-out training pictures, not on these. `p` is the probability of such
# a large difference if the views made no difference.

# %%
with progress_bar(console, f"classifying {views} views", views * len(data.test)) as progress:
    again = evaluate(model.network, data.test, model.normalization, views, progress)
print(f"1 view    {100 * again['top1']:.2f} %")
print(f"2 views   {100 * run.results['test']['tta_top1']:.2f} %")
print(f"{views} views   {100 * again['tta_top1']:.2f} %")
print(f"p = {again['tta_p']:.2g}, {views} views compared with 1")

# %% [markdown]
# ## The most confident mistakes
#
# These are the wrong predictions with the highest confidence. Below each picture are the true
# class, the prediction and its confidence. Would you have known?

# %%
title = "most confident mistakes"
mistakes = worst_mistakes(data.test, probabilities, most=24)
Image(draw_mistakes(mistakes, title, pictures / "mistakes.png"))

# %% [markdown]
# ## Save the results
#
# Next to `Result.png`, this saves two more files:
#
# - `best_model_200k.pth` contains the weights for PyTorch. The second cell shows how to load them.
# - `training_results_200k.json` contains all figures of this run, as well as the machine, the
#   versions and the time.
#
# The run's folder contains `model.safetensors`: a single file with everything that is needed to use
# the model, including the names of the classes.

# %%
torch.save(model.network.state_dict(), output / "best_model_200k.pth")
shutil.copy(run.folder / "results.json", output / "training_results_200k.json")

# %%
weights = torch.load(output / "best_model_200k.pth", weights_only=True)
network.load_state_dict(weights)

# %% [markdown]
# The next cell classifies pictures. It also accepts files of any size: `classifier("cat.jpg")`.

# %%
classifier = sprat.load(run.folder)
labels, _ = classifier(data.test.images[:5])
print("predicted:", ", ".join(labels))
print("true:     ", ", ".join(data.test.classes[target] for target in data.test.targets[:5]))

# %% [markdown]
# ## More accurate with fewer parameters
#
# The number of parameters alone does not decide how good a network is. `SpratM` has 94,858 of them,
# in blocks that look through windows of several sizes and at a resolution that never falls below
# 16 x 16. That takes five times the multiplications, so this training takes longer. The recipe and
# the number of epochs are the same as above.
#
# Both networks classify the same test pictures, so the last line can report a paired test
# (McNemar's): `p` is the probability of such a large difference between two equally good networks.

# %%
smaller = sprat.train(recipe, changes | {"network.name": "SpratM"}, dataset=data)

# %%
smaller_model = load_model(smaller.folder)
with progress_bar(console, "classifying the test pictures", len(data.test)) as progress:
    of_smaller = predict_probabilities(
        smaller_model.network, data.test.images, smaller_model.normalization, progress=progress
    )
hits = probabilities.argmax(1) == data.test.targets
hits_of_smaller = of_smaller.argmax(1) == data.test.targets
print(f"OptimizedCIFAR10Net200K   {100 * hits.double().mean():.2f} %")
print(f"SpratM                    {100 * hits_of_smaller.double().mean():.2f} %")
print(f"MACs                      {run.results['macs']:,} and {smaller.results['macs']:,}")
print(f"p = {mcnemar(hits, hits_of_smaller):.2g}")

# %% [markdown]
# ## Search for a network within your own budget
#
# What if the budget is much smaller? `sprat.search` draws designs that fit it, trains each for a
# short time on part of the training pictures, continues with the best, and finally trains the
# winner within the time that is left. It compares designs on held-out training pictures (*val*);
# the test pictures are used once, for the winner.
#
# Ten minutes are enough to see how it works. For a result to rely on, give it hours.

# %%
found = sprat.search(changes=changes, dataset=data, **budget)

# %% [markdown]
# Each point below is a network that was tried, with its accuracy on *val*; the colour shows for how
# long it was trained, so compare only points of the same colour. The dashed lines are the limits.
# The star is the winner: the best networks were trained again, for longer and on all training
# pictures, and it was then the most accurate of them on *val*.

# %%
Image(found.folder / "search" / "pareto.png")

# %% [markdown]
# The winner was then trained by the recipe. Here it is next to the two networks above and, for
# CIFAR-10, published ones. On the line are those to which no other is superior in both accuracy and
# number of parameters. Most of the others were trained for much longer.

# %%
results = found.results
print(
    f"{found.outcome['trained']} networks tried; the winner has {results['parameters']:,} "
    f"parameters, {results['macs']:,} MACs and an accuracy of {100 * results['test']['top1']:.2f} %"
)
comparison = pictures / "comparison.png"
published = settings.dataset == "cifar10"
folders = [run.folder, smaller.folder, found.folder]
entries = sprat.compare(*folders, published=published, output=comparison)
Image(comparison)

# %% [markdown]
# ## What next?
#
# - Change something under *Choose* and run all cells again. How much accuracy is lost with half of
#   the training pictures? How much is gained by twice as many epochs?
# - Use a network that was trained for much longer: `sprat.load("SpratM")`.
# - Train on [your own pictures](../docs/how-to/own-pictures.md): one folder per class.
# - Read [how results are obtained](../docs/explanation/honest-protocol.md), and why you can trust
#   them.
# - See [how other networks compare](../docs/explanation/other-networks.md), or
#   [serve a model](../docs/how-to/serve.md) as a web page that classifies pictures.
# - Do the same in a terminal: `sprat train --recipe sprint --final --dataset cifar10`, then
#   `sprat report FOLDER` for a page about the run.
