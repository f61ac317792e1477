"""The posterior written out densely in float64. It shares no code with the package, so that both cannot err alike.

Every Jacobian is autograd's own, one unpadded sequence at a time; every curvature is an explicit matrix; every variance
an explicit solve.
"""

import copy

import numpy as np
import torch


class ExplicitVirtualAdapter(torch.nn.Module):
    """The layer `x (W + B A)ᵀ + b` with its sum of weights written out, B being `weight`."""

    def __init__(self, layer, a):
        super().__init__()
        self.base, self.a = layer, a
        self.turned = not isinstance(layer, torch.nn.Linear)
        d_out = self.base.weight.shape[1 if self.turned else 0]
        self.weight = torch.nn.Parameter(torch.zeros(d_out, a.shape[0], dtype=a.dtype))

    def forward(self, x):
        w = self.base.weight.T if self.turned else self.base.weight  # GPT-2's Conv1D holds its transpose
        return torch.nn.functional.linear(x, w + self.weight @ self.a, self.base.bias)


class DensePosterior:
    """Dense Laplace posterior over the LoRA weights (and the head's, and virtual adapters) of a sequence classifier.

    Args:
        model: any dtype; a float64 copy is used.
        virtual: A `[r, d_in]` by the names of the layers that have a virtual adapter.
        pairs: `(chosen ids, rejected ids)` of each pair, or `(ids, token types)` in the place of ids.
        head: name of the head's weight when the posterior includes it.
        output_weights: weight of each output.
    """

    def __init__(self, model, pairs, head=None, output_weights=(1.0,), virtual=None):
        self.model = copy.deepcopy(model).double().eval()
        self.output_weights = torch.tensor(output_weights, dtype=torch.float64)
        self.modules = {}
        for name, module in self.model.named_modules():
            if hasattr(module, "lora_A") and len(getattr(module, "lora_A", ())):
                adapter = module.active_adapters[0]
                plain = name.removeprefix("base_model.model.")
                self.modules[f"{plain}.lora_A"] = (module.lora_A[adapter], "in")
                self.modules[f"{plain}.lora_B"] = (module.lora_B[adapter], "out")
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        for name, a in (virtual or {}).items():
            explicit = ExplicitVirtualAdapter(base.get_submodule(name), a.double())
            base.set_submodule(name, explicit)
            self.modules[f"{name}.virtual_B"] = (explicit, "out")
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        if head is not None:
            self.modules[f"{head}.weight"] = (self._head_module(head), "in")
        for module, _ in self.modules.values():
            module.weight.requires_grad_(True)
        self.pairs = pairs
        self.observed = [self._observe(*pair) for pair in pairs]
        self.curvature = np.array([o["curvature"] for o in self.observed])
        self.jacobians = np.stack([o["jacobian"] for o in self.observed])
        self.log_likelihood = sum(o["log_likelihood"] for o in self.observed)
        self.theta = np.concatenate([m.weight.detach().numpy().ravel() for m, _ in self.modules.values()])

    def _head_module(self, head):
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        module = base.get_submodule(head)
        return module.modules_to_save[module.active_adapters[0]] if hasattr(module, "modules_to_save") else module

    def reward(self, row):
        ids, types = row if isinstance(row[0], list) else (row, None)
        inputs = {"input_ids": torch.tensor([ids])}
        if types is not None:
            inputs["token_type_ids"] = torch.tensor([types])
        return (self.model(**inputs).logits @ self.output_weights)[0]

    def jacobian(self, row):
        reward = self.reward(row)
        grads = torch.autograd.grad(reward, [module.weight for module, _ in self.modules.values()])
        return reward.item(), np.concatenate([grad.numpy().ravel() for grad in grads])

    def _observe(self, chosen, rejected):
        return self._observe_signed((chosen, 1.0), (rejected, -1.0))

    def _observe_signed(self, *rows):
        """Jacobian of the signed sum, and every layer's inputs and output gradients token by token."""
        tokens = {name: [] for name in self.modules}
        margin, jacobian = 0.0, 0.0
        for row, sign in rows:
            seen = {}
            handles = [
                module.register_forward_hook(
                    lambda m, x, y, name=name, seen=seen: seen.update({name: (x[0].detach(), y)})
                )
                for name, (module, _) in self.modules.items()
            ]
            reward = self.reward(row)
            for handle in handles:
                handle.remove()
            names = list(seen)
            grads = torch.autograd.grad(reward, [seen[name][1] for name in names], retain_graph=True)
            for name, grad in zip(names, grads, strict=True):
                x = seen[name][0].reshape(-1, seen[name][0].shape[-1]).numpy()
                g = grad.reshape(-1, grad.shape[-1]).numpy()
                if name.endswith(".virtual_B"):
                    x = x @ self.modules[name][0].a.numpy().T
                if name.endswith(".weight"):  # the head: only the token that is scored
                    x, g = x[np.abs(g).sum(1) > 0], g[np.abs(g).sum(1) > 0]
                tokens[name].append((x, g))
            value, row_jacobian = self.jacobian(row)
            margin += sign * value
            jacobian = jacobian + sign * row_jacobian
        probability = 1 / (1 + np.exp(-margin))
        return {
            "curvature": probability * (1 - probability),
            "jacobian": jacobian,
            "log_likelihood": np.log(probability),
            "tokens": tokens,
        }

    def factors(self, name):
        """KFAC-expand: inputs averaged over tokens, output gradients summed and weighted by the loss curvature."""
        inputs = np.concatenate([x for o in self.observed for x, _ in o["tokens"][name]])
        grads = sum(o["curvature"] * g.T @ g for o in self.observed for _, g in o["tokens"][name])
        return inputs.T @ inputs / len(inputs), grads

    def block(self, name, structure, rank):
        """The curvature of one weight matrix, vectorised row by row (output index slow, input index fast)."""
        inputs, grads = self.factors(name)
        values, vectors = {}, {}
        for side, matrix in (("in", inputs), ("out", grads)):
            values[side], vectors[side] = np.linalg.eigh(matrix)
            values[side], vectors[side] = values[side][::-1], vectors[side][:, ::-1]
        large = self.modules[name][1]
        kept = len(values[large]) if rank is None else min(rank, len(values[large]))
        if structure == "kfac":
            eigenvalues = np.outer(values["out"], values["in"])
        else:
            basis = np.kron(vectors["out"], vectors["in"])
            part = self.jacobians[:, self.slice(name)] @ basis
            eigenvalues = (self.curvature @ part**2).reshape(len(values["out"]), len(values["in"]))
        if kept < len(values[large]):
            if large == "in":
                eigenvalues[:, kept:] = eigenvalues[:, kept:].mean(1, keepdims=True)
            else:
                eigenvalues[kept:, :] = eigenvalues[kept:, :].mean(0, keepdims=True)
        basis = np.kron(vectors["out"], vectors["in"])
        return basis @ np.diag(eigenvalues.ravel()) @ basis.T

    def slice(self, name):
        start = 0
        for other, (module, _) in self.modules.items():
            if other == name:
                return slice(start, start + module.weight.numel())
            start += module.weight.numel()
        raise KeyError(name)

    def ggn(self, structure, rank=None):
        """The curvature over all weights: as it is ("ggn"), or block diagonal "kfac" or "ekfac"."""
        if structure == "ggn":
            return (self.jacobians.T * self.curvature) @ self.jacobians
        total = np.zeros((len(self.theta),) * 2)
        for name in self.modules:
            total[self.slice(name), self.slice(name)] = self.block(name, structure, rank)
        return total

    def covariance(self, rows, structure, rank, precision):
        """Covariance of the rewards of rows; a pair `(chosen, rejected)` in a row's place is their difference."""
        hessian = self.ggn(structure, rank) + precision * np.eye(len(self.theta))
        jacobians = np.stack([self.jacobian(row)[1] for row in rows])
        return jacobians @ np.linalg.solve(hessian, jacobians.T)

    def pair_variance(self, structure, rank, precision):
        hessian = self.ggn(structure, rank) + precision * np.eye(len(self.theta))
        return np.einsum("ip,pi->i", self.jacobians, np.linalg.solve(hessian, self.jacobians.T))

    def log_evidence(self, structure, rank, precision):
        hessian = self.ggn(structure, rank) + precision * np.eye(len(self.theta))
        sign, log_determinant = np.linalg.slogdet(hessian)
        assert sign > 0
        return (
            self.log_likelihood
            - 0.5 * precision * self.theta @ self.theta
            + 0.5 * len(self.theta) * np.log(precision)
            - 0.5 * log_determinant
        )


class DenseSteps(DensePosterior):
    """The same over labelled steps of a token classifier, with the Bernoulli likelihood.

    Args:
        model, options: as above.
        steps: `(ids, position, label)` of each step.

    A row is `(ids, position)`.
    """

    def reward(self, row):
        ids, position = row
        return self.model(input_ids=torch.tensor([ids])).logits[0, position] @ self.output_weights

    def _observe(self, ids, position, label):
        found = self._observe_signed(((ids, position), 1.0))
        correct = np.exp(found["log_likelihood"])
        return found | {"log_likelihood": np.log(correct if label else 1 - correct)}
