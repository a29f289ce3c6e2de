import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import nn

from unziplora_cli.method.layer import DualLoRALinear
from unziplora_cli.method.losses import denoising_loss, min_snr_weight, overlap_penalty


def test_overlap_penalty_is_the_mean_over_all_columns_of_every_layer() -> None:
    small, large = DualLoRALinear(nn.Linear(4, 4), 1), DualLoRALinear(nn.Linear(4, 8), 1)
    for layer, shared in ((small, 1), (large, 4)):
        layer.content.mask[:shared] = True
        layer.style.mask[: shared + 2] = True
        layer.content.merge.data.fill_(0.5)
        for branch in layer.branches():
            branch.close()
    torch.testing.assert_close(overlap_penalty([small, large]), torch.tensor((0.5 * 1 / 4 + 0.5 * 4 / 8) / 2))


def test_min_snr_weight_agrees_with_diffusers() -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = torch.tensor([0, 10, 400, 999])
    snr = compute_snr(scheduler, timesteps)
    expected = torch.stack([snr, torch.full_like(snr, 5.0)]).amin(0) / snr
    torch.testing.assert_close(min_snr_weight(scheduler.alphas_cumprod, timesteps, 5.0), expected)


def test_weights_scale_the_loss_of_each_image() -> None:
    prediction, target = torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert denoising_loss(prediction, target) == 2.5
    assert denoising_loss(prediction, target, torch.tensor([1.0, 0.5])) == 1.5
    assert denoising_loss(prediction.bfloat16(), target.bfloat16()).dtype == torch.float32
