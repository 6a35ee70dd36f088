"""From a folder of images, with one subfolder for each noisy label, to suspects and a distilled set.

python own_images.py FOLDER
"""

import sys

import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.utils import save_image

from tadlib import trust
from tadlib.config import AuditorConfig, DmConfig
from tadlib.distill import dm
from tadlib.nn.networks import Network, NetworkSpec

SIDE, IPC = 32, 10
prepared = v2.Compose([v2.PILToTensor(), v2.Resize(SIDE), v2.CenterCrop(SIDE), v2.ToDtype(torch.float32, scale=True)])
folder = ImageFolder(sys.argv[1], prepared)
pixels = torch.stack([image for image, _ in folder])
noisy = torch.tensor(folder.targets)
mean, std = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), keepdim=True)
images = (pixels - mean) / std

net = Network(NetworkSpec((3, SIDE, SIDE), len(folder.classes), width=32, depth=3))
augmentation = "color_crop_flip_scale_rotate"  # without flip where mirror images mean something else, as of letters
problem = trust.NoisyProblem(net, images, noisy, len(folder.classes), seed=0)
method = trust.Tad(AuditorConfig(epochs=15, augmentation=augmentation))  # or trust.TrustPosterior
refined = trust.refine(method, problem)

suspects = refined.table().assign(file=[path for path, _ in folder.samples]).sort_values("trust")
suspects.to_csv("suspects.csv", index=False)  # least trusted first

settings = DmConfig(iterations=300, lr_img=5.0, batch_real=64, augmentation=augmentation)
synthetic, _ = dm.distill(net, images, refined.y, refined.weight, None, settings, ipc=IPC, seed=0)
save_image((synthetic.x * std + mean).clamp(0, 1), "distilled.png", nrow=IPC)  # a class a row
torch.save({"x": synthetic.x, "y": synthetic.y, "mean": mean, "std": std}, "distilled.pt")
