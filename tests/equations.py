"""The equations and algorithm lines of the papers, once: `pages.py` sets them beside the code, `test_beside.py` holds
that each one is found there.

The code carries the numbers as tags: "eq. 8" or "line 6" in a method's own file, "LIA eq. 3" in a file that methods
share.  Formulas are written in the subset of LaTeX that `pages.mathml` reads, letter for letter as the four papers
print them; what is wrong in print stays, and our reading stands next to it.  Formulas of others are in our letters.
"""
from typing import NamedTuple


class Paper(NamedTuple):
    name: str
    tag: str                # what its numbers are called in files that several methods share
    title: str
    authors: str
    edition: str            # the version whose numbers the tags carry
    links: tuple            # (text, address)
    script: str             # the file in which its numbers stand without a name
    symbols: tuple          # (LaTeX, shape, what it is)
    sections: dict          # those in which it has equations, or that the code names


class Equation(NamedTuple):
    paper: str              # a key of PAPERS
    number: str             # "eq. 8", "line 6", or a name if it has no number in print
    section: str
    printed: str            # LaTeX
    says: str
    tests: tuple            # that prove the code
    where: tuple = ()       # besides its tags, definitions ("age") and updates in them ("age: opt.E")
    by: tuple = ()          # numbers of the entries whose lines carry it out
    none: str = ""          # why no line does
    reading: str = ""       # LaTeX of what we compute, if the print is wrong
    note: str = ""          # what is wrong
    flags: tuple = ()       # of the script
    differs: tuple = ()     # how titles of differences begin that name neither its number nor a flag

    @property
    def id(self):
        return "-".join([self.paper, *"".join(c if c.isalnum() else
        " " for c in self.number).lower().split()])


PAPERS = {
    "alae": Paper(
        "ALAE", "ALAE", "Adversarial Latent Autoencoders", "Pidhorskyi, Adjeroh and Doretto",
        "CVPR 2020, arXiv 2004.04467",
        (("arXiv 2004.04467", "https://arxiv.org/abs/2004.04467"),), "alae.py",
        ((r"z", "(B, nz)", "sample of the prior, N(0, I)"),
         (r"w", "(B, nw)", "latent code"),
         (r"x", "(B, C, H, W)", "image"),
         (r"F", "z → w", "mapping network"),
         (r"G", "w → x", "generator"),
         (r"E", "x → w", "encoder"),
         (r"D", "w → logit, (B, 1)", "second half of the discriminator, which is D∘E"),
         (r"\eta", "(B, 1, H, W) a layer", "noise of StyleGAN's layers"),
         (r"C_i", "(2C, nw)", "linear map of a layer's styles"),
         (r"\mu", "(B, C)", "mean of each channel"),
         (r"\sigma", "(B, C)", "deviation of each channel")),
        {"3": "Preliminaries", "4": "Adversarial Latent Autoencoders", "4.1":
        "Relation with other autoencoders",
         "5": "StyleALAE", "6": "Implementation", "7.1": "Representation learning with MLP",
         "7.2": "Learning style representations"}),
    "lia": Paper(
        "LIA", "LIA", "Latently Invertible Autoencoder with Adversarial Learning",
        "Anonymous (Zhu et al.)",
        "the anonymous submission to ICLR 2020, OpenReview ryefE1SYDr; arXiv 1906.08090 has a "
        "later text under another title, with other numbers",
        (("OpenReview ryefE1SYDr", "https://openreview.net/forum?id=ryefE1SYDr"),
         ("arXiv 1906.08090 (later text)", "https://arxiv.org/abs/1906.08090")), "lia.py",
        ((r"z", "(B, nz)", "sample of the prior, N(0, I)"),
         (r"y", "(B, nw)", "feature; the code calls it w"),
         (r"x", "(B, C, H, W)", "image in [-1, 1]"),
         (r"\tilde{x}", "(B, C, H, W)", "generated or reconstructed image"),
         (r"\phi", "w ↔ z", "invertible network, both ways"),
         (r"f", "x → w", "partial encoder"),
         (r"g", "w → x", "decoder"),
         (r"c", "x → score, (B, 1)", "critic: large for real images"),
         (r"\epsilon", "x → (B, n)", "features that reconstructions are compared by"),
         (r"\tau", "(B, nw/2) → (B, nw/2)", "MLP of a coupling")),
        {"1": "Introduction", "2.1": "Neural architecture of LIA",
         "2.2": "Reconstruction loss and adversarial learning",
         "3.1": "Decoder training", "3.2": "Encoder training", "5": "Experiments",
         "5.3": "Why the invertible network matters?", "A.1": "Generation results"}),
    "invgan": Paper(
        "InvGAN", "InvGAN", "InvGAN: Invertable GANs", "Ghosh, Zietlow, Black, Davis and Hu",
        "arXiv 2112.04598; published as InvGAN: Invertible GANs, GCPR 2022, DOI "
        "10.1007/978-3-031-16788-1_1",
        (("arXiv 2112.04598", "https://arxiv.org/abs/2112.04598"),
         ("DOI 10.1007/978-3-031-16788-1_1", "https://doi.org/10.1007/978-3-031-16788-1_1")), "invgan.py",
        ((r"z", "(B, nz)", "sample of the prior, N(0, I)"),
         (r"w", "(B, nw)", "latent code, M(z)"),
         (r"\tilde{w}", "(B, nw)", "code that D infers"),
         (r"w_R", "(B/2, nw)", "code that D infers of real images"),
         (r"x", "(B, C, H, W)", "image in [-1, 1]"),
         (r"M", "z → w", "mapping network"),
         (r"G", "w → x", "generator"),
         (r"D", "x → (B, nw), (B, 1)", "discriminator: one trunk, a code and a score"),
         (r"f", "x → (B, n)", "features: D's trunk")),
        {"3.1": "Architecture", "3.2": "Objective",
         "3.3": "Dealing with resolutions higher than training resolution",
         "4.1": "Semantically consistent inversion using InvGAN", "4.2": "Suitability for image editing",
         "4.3": "Tiling to boost resolution", "4.4": "Ablation studies"}),
    "faae": Paper(
        "F-AAE", "F-AAE", "Flipped-Adversarial AutoEncoders", "Zhang, Dang, Lee and Chang",
        "arXiv 1802.04504",
        (("arXiv 1802.04504", "https://arxiv.org/abs/1802.04504"),), "faae.py",
        ((r"z", "(B, nz)", "sample of the prior, and code"),
         (r"x", "(B, C, H, W)", "image in [0, 1]"),
         (r"G", "z → x", "generator"),
         (r"E", "x → z", "encoder"),
         (r"D", "x, z or both → logit, (B, 1)",
         "discriminator; without a sigmoid, so -log D is softplus(-D)")),
        {"2.2": "GAN", "2.3": "Adversarial AutoEncoders", "2.4": "BiGAN", "3.1": "Frame of F-AAE",
         "3.2": "Architecture of D, G and E", "4.1": "Experiment setup", "4.2":
         "Image reconstruction",
         "4.4": "Image morphing through vector arithmetic", "5": "Related work",
         "the family":
         "Objectives of other papers on the same networks, in this project's letters"}),
    "others": Paper(
        "Borrowed", "", "Borrowed formulas", "", "the papers that each entry names", (), "",
        ((r"x", "(B, C, H, W)", "image"), (r"m", "(d,)", "mean of features"), (r"C", "(d, d)",
        "their covariance")),
        {"losses": "Regularisation", "metrics": "Distances of images and of sets"}),
}

BY_HAND = ("test_algorithm_1_by_hand", "test_each_step_moves_what_it_names")
CRITIC = ("test_the_decoders_step_by_hand", "test_the_encoders_step_by_hand", "test_the_signs")
PHASES = ("test_an_iteration_by_hand", "test_each_phase_moves_what_it_names")


EQUATIONS = [
    # ----------------------------------------------------------------------------------------- ALAE
    Equation(
        "alae", "eq. 1", "3",
        r"V(G, D) = E_{p_{\mathcal{D}}(x)}[f(D(x))] + E_{p(z)}[f(-D(G(z)))]",
        "The value of a GAN's game: f of the scores of real images, plus f of minus the scores of "
        "generated ones.",
        ("test_algorithm_1_by_hand",), by=("line 6", "line 10"),
        reading=r"f(t) = -\operatorname{softplus}(-t)",
        note="Section 3 asks for a concave f, and section 6 sets f = softplus, which is convex: "
             "eq. 1 with it has no bound over D.  Algorithm 1 is right, and is what we follow.",
        differs=("f = softplus",)),
    Equation(
        "alae", "eq. 2", "4",
        r"G = G \circ F, \quad \text{and} \quad D = D \circ E",
        "Generator and discriminator are cut in two, and the spaces at the cuts are the same, W.",
        ("test_the_models_interface",), by=("line 6",),
        note="G and D name the composition on the left and its second half on the right."),
    Equation(
        "alae", "eq. 3", "4",
        r"q(x) = \int_w \int_\eta q_G(x|w, \eta) q_F(w) p_\eta(\eta) d\eta dw",
        "The distribution of generated images: codes and noise, pushed through G.",
        (), none="It defines a distribution; the code only draws samples of it, G(F(z))."),
    Equation(
        "alae", "eq. 4", "4",
        r"q_E(w) = \int_x q_E(w|x) q(x) dx",
        "The distribution of the codes that E gives to generated images.",
        (), none="It defines a distribution; the code only draws samples of it, E(G(F(z)))."),
    Equation(
        "alae", "eq. 5", "4",
        "q_F(w) = q_E(w)",
        "The goal: E's codes of generated images are distributed as the codes that went into G.",
        (), none="A goal, not a computation; equation 8 is what brings it about."),
    Equation(
        "alae", "eq. 6", "4",
        r"\min_{F,G} \max_{E,D} V(G \circ F, D \circ E)",
        "F and G play the GAN's game against E and D.",
        BY_HAND, by=("line 6", "line 10"),
        note="Algorithm 1 has the non-saturating form: F and G do not minimise what E and D "
             "maximise, but minimise softplus of minus the score.",
        flags=("--gamma", "--d-act")),
    Equation(
        "alae", "eq. 7", "4",
        r"\min_{E,G} \Delta(F \| E \circ G \circ F)",
        "E and G bring the codes that return in line with the codes that were given.",
        BY_HAND, by=("line 14", "line 15"), flags=("--step3",)),
    Equation(
        "alae", "eq. 8", "4.1",
        r"\Delta(F \| E \circ G \circ F) = E_{p(z)}[ \lVert F(z) - E \circ G \circ F(z) "
        r"\rVert_2^2 ]",
        "The discrepancy is a squared distance in latent space, never one of pixels.",
        ("test_algorithm_1_by_hand",), flags=("--latent-loss",)),
    Equation(
        "alae", "eq. 9", "5",
        r"w = \sum_{i=1}^{N} C_i \begin{bmatrix} \mu(y_i^E) \\ \sigma(y_i^E) \end{bmatrix}",
        "The code is a sum, over E's layers, of linear maps of each channel's mean and deviation: "
        "the mirror image of how styles drive G.",
        ("test_equation_9", "test_instance_norm"), where=("take_style",), flags=("--layers",),
        differs=("deviations in E",)),
    Equation(
        "alae", "line 1", "6",
        r"\theta_F, \theta_G, \theta_E, \theta_D \leftarrow \text{Initialize network parameters}",
        "Algorithm 1 begins with four networks.",
        ("test_layers_that_f_d_and_e_share_with_the_released_code",),
        none="Networks initialise themselves when `main` builds the model.",
        differs=("depth of F", "end of F")),
    Equation(
        "alae", "line 2", "6",
        r"\text{while not converged do}",
        "One turn of the loop is steps I, II and III.",
        (), none="The loop of `main` ends after --kimg thousand images, not at convergence."),
    Equation(
        "alae", "line 3", "6",
        r"\text{Step I. Update } E \text{, and } D",
        "E and D learn to tell real images from generated ones.",
        BY_HAND),
    Equation(
        "alae", "line 4", "6",
        r"x \leftarrow \text{Random mini-batch from dataset}",
        "A batch of real images.",
        ("test_alaes_images_and_codes",)),
    Equation(
        "alae", "line 5", "6",
        r"z \leftarrow \text{Samples from prior } \mathcal{N}(0, I)",
        "A batch of noise; each step draws its own.",
        BY_HAND),
    Equation(
        "alae", "line 6", "6",
        r"L_{adv}^{E,D} \leftarrow \operatorname{softplus}(D \circ E \circ G \circ F(z)) + "
        r"\operatorname{softplus}(-D \circ E(x)) + \frac{\gamma}{2} E_{D(x)}[ \lVert "
        r"\nabla D \circ E(x) \rVert^2 ]",
        "Scores of generated images are to fall, scores of real ones to rise, and the score is to "
        "be flat around real images (R1).",
        (*BY_HAND, "test_r1_of_a_linear_critic", "test_r1_is_a_mean_over_images",
         "test_softplus_is_fp32_and_averages"),
        reading=r"\frac{\gamma}{2} E_{p_{\mathcal{D}}(x)}[ \lVert \nabla_x D \circ E(x) \rVert^2 ]",
        note="Section 6 has the gradient taken with respect to the parameters of E and D; the "
             "penalty that it cites takes it with respect to x.  The mean is over real images.",
        flags=("--gamma", "--d-act"), differs=("R1's gradient",)),
    Equation(
        "alae", "line 7", "6",
        r"\theta_E, \theta_D \leftarrow \operatorname{ADAM}(\nabla_{\theta_D, \theta_E} "
        r"L_{adv}^{E,D}, \theta_D, \theta_E, \alpha, \beta_1, \beta_2)",
        "One step of Adam for E and D alone.",
        (*BY_HAND, "test_update_moves_what_it_names", "test_fused_adam_is_adam"),
        differs=("learning rate of F",)),
    Equation(
        "alae", "line 8", "6",
        r"\text{Step II. Update } F \text{, and } G",
        "F and G learn to fool E and D.",
        BY_HAND),
    Equation(
        "alae", "line 9", "6",
        r"z \leftarrow \text{Samples from prior } \mathcal{N}(0, I)",
        "Fresh noise.",
        BY_HAND),
    Equation(
        "alae", "line 10", "6",
        r"L_{adv}^{F,G} \leftarrow \operatorname{softplus}(-D \circ E \circ G \circ F(z))",
        "Scores of generated images are to rise: the non-saturating loss.",
        (*BY_HAND, "test_softplus_is_fp32_and_averages")),
    Equation(
        "alae", "line 11", "6",
        r"\theta_F, \theta_G \leftarrow \operatorname{ADAM}(\nabla_{\theta_F, \theta_G} "
        r"L_{adv}^{F,G}, \theta_F, \theta_G, \alpha, \beta_1, \beta_2)",
        "One step of Adam for F and G alone; the gradient passes through E and D, which stay.",
        BY_HAND),
    Equation(
        "alae", "line 12", "6",
        r"\text{Step III. Update } E \text{, and } G",
        "E learns to return the code that G was given.",
        BY_HAND),
    Equation(
        "alae", "line 13", "6",
        r"z \leftarrow \text{Samples from prior } \mathcal{N}(0, I)",
        "Fresh noise.",
        BY_HAND),
    Equation(
        "alae", "line 14", "6",
        r"L_{error}^{E,G} \leftarrow \lVert F(z) - E \circ G \circ F(z) \rVert_2^2",
        "How far the code that returns is from the code that was given.",
        BY_HAND, flags=("--latent-loss",)),
    Equation(
        "alae", "line 15", "6",
        r"\theta_E, \theta_G \leftarrow \operatorname{ADAM}(\nabla_{\theta_E, \theta_G} "
        r"L_{error}^{E,G}, \theta_E, \theta_G, \alpha, \beta_1, \beta_2)",
        "One step of Adam for E and G; F is left alone.",
        BY_HAND, flags=("--step3",)),

    # ------------------------------------------------------------------------------------------ LIA
    Equation(
        "lia", "eq. 1", "1",
        r"\log p(\boldsymbol{x}) = \log \int p(\boldsymbol{x}|\boldsymbol{z}) p(\boldsymbol{z}) "
        r"d\boldsymbol{z} \ge -\mathrm{KL}[q(\boldsymbol{z}|\boldsymbol{x}) \| p(\boldsymbol{z})] "
        r"+ \mathbb{E}_q[\log p(\boldsymbol{x}|\boldsymbol{z})]",
        "The bound that a VAE maximises.  LIA does without it; the code has its divergence for "
        "the VAE of section 5.3.",
        ("test_the_perceptual_loss_and_the_divergence", "test_phi_is_for_the_vae_alone"),
        flags=("--inference", "--kl-weight"), differs=("VAE (section 5.3)",)),
    Equation(
        "lia", "eq. 2", "2.1",
        r"\begin{aligned} & \overbrace{\boldsymbol{x} \stackrel{f}{\mapsto} \boldsymbol{y} "
        r"\leftrightarrow \underbrace{\boldsymbol{y} \stackrel{\phi_1}{\mapsto} \boldsymbol{z}_1 "
        r"\cdots \boldsymbol{z}_{k-1} \stackrel{\phi_k}{\mapsto} "
        r"\boldsymbol{z}_k}_{\phi}}^{\text{encoder}} \\ & \underbrace{\boldsymbol{z}_k "
        r"\stackrel{\phi_k^{-1}}{\mapsto} \boldsymbol{z}_{k-1} \cdots \boldsymbol{z}_1 "
        r"\stackrel{\phi_1^{-1}}{\mapsto} \boldsymbol{y}}_{\phi^{-1}} \leftrightarrow "
        r"\boldsymbol{y} \stackrel{g}{\mapsto} \tilde{\boldsymbol{x}} \end{aligned}",
        "The whole chain: an image becomes a feature, the invertible network makes it a latent "
        "variable and back again, and the decoder makes an image of it.  The two lines below are "
        "the invertible network, one brace in print.  Stage 2 leaves the middle out.",
        ("test_the_network_is_invertible", "test_stage_2_is_deterministic_and_has_one_w"),
        by=("eq. 3", "eq. 4"),
        note="Figure 1's caption has z = φ(x) and y = ψ⁻¹(z), meaning φ(y) and φ⁻¹(z).",
        flags=("--depth",)),
    Equation(
        "lia", "eq. 3", "2.1",
        r"\boldsymbol{z}_t = \boldsymbol{x}_t, \quad \boldsymbol{z}_b = \boldsymbol{x}_b + "
        r"\tau(\boldsymbol{x}_t)",
        "A coupling, w to z: the top half stays, the bottom half is shifted by a function of the "
        "top.",
        ("test_one_coupling_by_hand", "test_its_values_and_determinant"),
        note="x is the feature that equation 2 calls y.", flags=("--coupling", "--depth")),
    Equation(
        "lia", "eq. 4", "2.1",
        r"\boldsymbol{x}_t = \boldsymbol{z}_t, \quad \boldsymbol{x}_b = \boldsymbol{z}_b - "
        r"\tau(\boldsymbol{z}_t)",
        "The same coupling, z to w: the shift is subtracted, so the inverse is exact.",
        ("test_the_network_is_invertible", "test_the_network_is_fp32_and_shares_its_parameters"),
        note="x is the feature that equation 2 calls y.", flags=("--coupling", "--depth")),
    Equation(
        "lia", "eq. 5", "2.2",
        r"L(\epsilon, \boldsymbol{x}, \tilde{\boldsymbol{x}}) = \lVert \epsilon(\boldsymbol{x}) - "
        r"\epsilon(\tilde{\boldsymbol{x}}) \rVert_2",
        "The perceptual loss: how far the features of the reconstruction are from those of the "
        "image.",
        ("test_the_perceptual_loss_and_the_divergence", "test_vggs_features"),
        flags=("--perceptual", "--perceptual-norm")),
    Equation(
        "lia", "eq. 6", "2.2",
        r"L(c, \boldsymbol{x}, \tilde{\boldsymbol{x}}) = \underset{\tilde{\boldsymbol{x}} \sim "
        r"\mathbb{P}_{\tilde{x}}}{\mathbb{E}}[c(\tilde{\boldsymbol{x}})] - "
        r"\underset{\boldsymbol{x} \sim \mathbb{P}_x}{\mathbb{E}}[c(\boldsymbol{x})] + "
        r"\frac{\gamma}{2} \underset{\boldsymbol{x} \sim \mathbb{P}_x}{\mathbb{E}}[ \lVert "
        r"\nabla_{\boldsymbol{x}} c(\boldsymbol{x}) \rVert_{\ell_2}^2 ]",
        "The critic's loss: its scores of generated images, minus those of real ones, plus R1.",
        (*CRITIC, "test_r1_of_a_linear_critic"),
        note="Taken as a loss that the critic minimises, it scores realness, and + R1 is right.",
        flags=("--adversarial", "--gamma")),
    Equation(
        "lia", "eq. 7", "3.1",
        r"\{\phi^*, g^*, c^*\} = \min_{\phi, g} \max_c L(c, \boldsymbol{x}, "
        r"\tilde{\boldsymbol{x}})",
        "Stage 1: a GAN whose generator is the invertible network followed by the decoder.",
        ("test_the_decoders_step_by_hand", "test_the_signs", "test_what_each_step_moves"),
        reading=r"\min_c L(c, \boldsymbol{x}, \tilde{\boldsymbol{x}}), \quad \min_{\phi, g} "
                r"-\mathbb{E}[c(\tilde{\boldsymbol{x}})]",
        note="As printed, the critic would maximise R1 too.", flags=("--adversarial",)),
    Equation(
        "lia", "eq. 8", "3.2",
        r"f^* = \min_{\epsilon} \beta L(\epsilon^*, \boldsymbol{x}, \tilde{\boldsymbol{x}}) + "
        r"L(c^*, \boldsymbol{x}, \tilde{\boldsymbol{x}})",
        "Stage 2: the encoder learns to reconstruct, and its reconstructions are to look real.",
        ("test_the_encoders_step_by_hand", "test_the_signs", "test_what_each_step_moves"),
        reading=r"f^* = \operatorname{arg} \min_f \beta L(\epsilon^*, \boldsymbol{x}, "
                r"\tilde{\boldsymbol{x}}) - \mathbb{E}[c(\tilde{\boldsymbol{x}})]",
        note="The minimum is over f, not over ε, and the sign of the second term is the one that "
             "makes the game of equation 6 fair: f raises the critic's score.",
        flags=("--beta", "--pixel-weight", "--adversarial-weight", "--critic", "--adversarial"),
        differs=("critic's step",)),
    Equation(
        "lia", "eq. 9", "A.1",
        r"\boldsymbol{z} \stackrel{\mathrm{MLP}}{\mapsto} \boldsymbol{y} \stackrel{g}{\mapsto} "
        r"\tilde{\boldsymbol{x}}",
        "StyleGAN's generator, which LIA's is compared with: an MLP in place of the invertible "
        "network.",
        ("test_losses_of_the_paper_whatever_the_mapping", "test_mapping_and_pixel_norm"),
        flags=("--mapping",)),
    Equation(
        "lia", "eq. 10", "A.1",
        r"\boldsymbol{z} \stackrel{\phi^{-1}}{\mapsto} \boldsymbol{y} \stackrel{g}{\mapsto} "
        r"\tilde{\boldsymbol{x}}",
        "LIA's generator: the inverse network, then the decoder.",
        ("test_the_decoders_step_by_hand",), flags=("--mapping",)),

    # --------------------------------------------------------------------------------------- InvGAN
    Equation(
        "invgan", "eq. 1", "3.2",
        r"\begin{aligned} & \min_{G, M} \max_D \mathcal{L}_{\text{GAN}} = \min_{G, M} \max_D "
        r"\big[ \\ & \quad \mathbb{E}_{x \in \mathbb{X}} [\log D(x)] \\ & \quad + \mathbb{E}_{z "
        r"\in \mathbb{Z}} [\log(1 - D(G(M(z))))] \big] \end{aligned}",
        "A GAN's game; the score is one of D's two outputs.",
        ("test_a_step_by_hand", "test_what_each_step_moves"),
        flags=("--gan-loss", "--gan-codes", "--gamma"), differs=("R1",)),
    Equation(
        "invgan", "eq. 2", "3.2",
        r"\mathcal{L}_{\text{fm}} = \lVert \mathbb{E}_{x \in \mathbb{X}}(f(x) - f(G(w \sim "
        r"P(W|x)))) \rVert_p",
        "Feature matching: an image and its reconstruction are to look alike to D's trunk.",
        ("test_a_step_by_hand", "test_what_teaches_d"),
        reading=r"\mathbb{E}_{x \in \mathbb{X}} \lVert f(x) - f(G(D(x))) \rVert_2^2",
        note="With the expectation inside the norm only the means of the two batches are "
             "compared, which is what the prose says that it does not do.",
        flags=("--fm", "--fm-weight", "--targets"), differs=("f in L_fm", "pixels")),
    Equation(
        "invgan", "eq. 3", "3.2",
        r"\begin{aligned} & \min_{G, M} \big[ \max_D \mathcal{L}_{\text{GAN}} + \min_D \big[ "
        r"\mathbb{E}_{w \# w_R} \big[ \\ & \quad \lVert M(z) - \tilde{w} \rVert_2^2 + "
        r"\mathcal{L}_{\text{fm}} \\ & \quad + \lVert \tilde{w} - \tilde{w} \rVert_2^2 + "
        r"\mathrm{MMD}\{w, w_R\} \big] \big] \big] \end{aligned}",
        "The full model: the GAN's game, and at the same time the code's error, feature matching, "
        "the second cycle, and a distance between codes of the prior and codes of real images.  # "
        "joins two batches.",
        ("test_a_step_by_hand", "test_half_and_half", "test_mmd", "test_mmd_teaches_m_and_d",
         "test_what_each_step_moves"),
        reading=r"\lVert \tilde{w} - D(G(\tilde{w})) \rVert_2^2",
        note="The third term prints as zero.  The end of section 3.2 runs the encoding cycle once "
             "more: it is the distance between the first code and the second.",
        flags=("--variant", "--targets", "--w-weight", "--cycle-weight", "--mmd-weight"),
        differs=("||M(z)", "what moves in it", "MMD", "G's batch norm", "what D's score")),
    Equation(
        "invgan", "eq. 4", "3.2",
        r"P(W) := \int_{x \in \mathbb{X}} P(w|x) P(x) dx",
        "Codes as a latent variable model: draw an image, encode it.",
        (), none="It defines a distribution; the code only draws samples of it, D(x)."),
    Equation(
        "invgan", "eq. 5", "3.2",
        r"\min_{G, M} \max_D \mathcal{L}_{GAN} + \min_{G, M} \min_D \lVert w - \tilde{w} "
        r"\rVert_2^2",
        "The naive model: the GAN's game, and D returns the code that G was given.",
        ("test_a_step_by_hand", "test_what_each_step_moves"), flags=("--variant",)),

    # ------------------------------------------------------------------------ F-AAE, and its family
    Equation(
        "faae", "eq. 1", "2.2",
        r"\begin{aligned} & \min_\theta \max_w \mathcal{A}(G_\theta, D_w) \quad \text{where} \\ & "
        r"\mathcal{A}(G_\theta, D_w) = \mathbb{E}_{\mathbf{x} \sim p_x} [\log D_w(\mathbf{x})] \\ "
        r"& \quad + \mathbb{E}_{\mathbf{z} \sim p_z} [\log(1 - D_w(G_\theta(\mathbf{z})))] "
        r"\end{aligned}",
        "A GAN; latent regressors add an encoder to it.",
        PHASES, where=("lr: opt.D", "lr: opt.G"), flags=("--gamma",), differs=("log(1 - D)",)),
    Equation(
        "faae", "eq. 2", "2.3",
        r"\begin{aligned} & \min_{\theta, \phi} \max_w \mathcal{B}(G_\theta, E_\phi, D_w) \quad "
        r"\text{where} \\ & \mathcal{B}(G_\theta, E_\phi, D_w) = \mathbb{E}_{\mathbf{z} \sim p_z} "
        r"[\log D_w(\mathbf{z})] \\ & \quad + \mathbb{E}_{\mathbf{x} \sim p_x} [\log(1 - "
        r"D_w(E_\phi(\mathbf{x})))] \\ & \quad + \mathbb{E}_{\mathbf{x} \sim p_x} [d(\mathbf{x}, "
        r"G_\theta(E_\phi(\mathbf{x})))] \end{aligned}",
        "AAE: an autoencoder of images whose codes a discriminator cannot tell from samples of "
        "the prior.",
        PHASES, where=("aae",), flags=("--reenc",), differs=("log(1 - D)",)),
    Equation(
        "faae", "eq. 3", "2.4",
        r"\begin{aligned} & \min_{\theta, \phi} \max_w \mathcal{C}(G_\theta, E_\phi, D_w) \quad "
        r"\text{where} \\ & \mathcal{C}(G_\theta, E_\phi, D_w) = \mathbb{E}_{\mathbf{x} \sim "
        r"p_{data}} [\log D_w(E_\phi(x), x)] \\ & \quad + \mathbb{E}_{\mathbf{z} \sim p_z} "
        r"[\log(1 - D_w(z, G_\theta(z)))] \end{aligned}",
        "BiGAN: D tells pairs of an image and its code from pairs of a sample and the code that "
        "it was made of.",
        (*PHASES, "test_bigans_mlps"), where=("bigan",), flags=("--d-norm",),
        differs=("log(1 - D)", "BiGAN's MLPs", "steps of bigan")),
    Equation(
        "faae", "eq. 4", "3.1",
        r"\begin{aligned} & \min_{\theta, \phi} \max_w \mathcal{F}(G_\theta, E_\phi, D_w) \quad "
        r"\text{where} \\ & \mathcal{F}(G_\theta, E_\phi, D_w) = \mathbb{E}_{\mathbf{x} \sim p_x} "
        r"[\log D_w(\mathbf{x})] \\ & \quad + \mathbb{E}_{\mathbf{z} \sim p_z} [\log(1 - "
        r"D_w(G_\theta(\mathbf{z})))] \\ & \quad + \alpha \mathbb{E}_{\mathbf{z} \sim p_z} [ "
        r"\lVert \mathbf{z} - E_\theta(G_\phi(\mathbf{z})) \rVert ] \end{aligned}",
        "F-AAE: a GAN on images, and an error in latent space: the code that returns is to be the "
        "code that was given.",
        PHASES, where=("faae",), reading=r"\lVert \mathbf{z} - E_\phi(G_\theta(\mathbf{z})) \rVert",
        note="The indices are swapped.",
        flags=("--reencode-weight", "--adversarial-weight", "--reenc", "--joint", "--gamma"),
        differs=("log(1 - D)",)),
    Equation(
        "faae", "eq. 5", "4.4",
        r"\mathbf{l} = \alpha_1 \mathbf{z}_1 + \alpha_2 \mathbf{z}_2 + \alpha_3 \mathbf{z}_3 + "
        r"\alpha_4 \mathbf{z}_4",
        "A morph is decoded from a mixture of four codes, brought back onto the sphere.",
        ("test_morph_corners_are_reconstructions", "test_codes_are_uniform_on_the_sphere"),
        reading=r"\mathbf{z}' = \mathbf{l} / \lVert \mathbf{l} \rVert",
        note="The text calls the next line, z' = l, normalising: it divides by the length.",
        differs=("codes",)),
    Equation(
        "faae", "re-encoding phase", "3.1",
        r"\min_{G_\theta, E_\phi} \lVert \mathbf{z} - E_\phi(G_\theta(\mathbf{z})) \rVert",
        "First phase of an iteration: G and E bring the code back.  The paper gives the phases in "
        "words.",
        PHASES, where=("faae: opt.G, opt.E",), flags=("--reencode-weight", "--reenc", "--joint"),
        differs=("weights", "steps of G")),
    Equation(
        "faae", "regularization phase, D", "3.1",
        r"\max_{D_w} \mathbb{E}_{\mathbf{x} \sim p_x} [\log D_w(\mathbf{x})] + "
        r"\mathbb{E}_{\mathbf{z} \sim p_z} [\log(1 - D_w(G_\theta(\mathbf{z})))]",
        "Second phase, first half: D learns to tell real images from generated ones.",
        PHASES, where=("faae: opt.D",), flags=("--gamma",)),
    Equation(
        "faae", "regularization phase, G", "3.1",
        r"\max_{G_\theta} \mathbb{E}_{\mathbf{z} \sim p_z} [\log D_w(G_\theta(\mathbf{z}))]",
        'Second phase, second half: G is "updated so as to maximally confuse" D.',
        PHASES, where=("faae: opt.G",), flags=("--adversarial-weight",),
        differs=("log(1 - D)", "steps of G")),
    Equation(
        "faae", "ALI", "the family",
        r"\begin{aligned} & \min_{G, E} \max_D \mathbb{E}_x \mathbb{E}_{z \sim q(z|x)} [\log D(x, "
        r"z)] \\ & \quad + \mathbb{E}_z [\log(1 - D(G(z), z))], \\ & q(z|x) = \mathcal{N}(\mu(x), "
        r"\sigma^2(x)) \end{aligned}",
        "BiGAN's game with an encoder that draws its code (Dumoulin et al., arXiv 1606.00704).",
        PHASES, where=("ali",), differs=("log(1 - D)", "steps of bigan")),
    Equation(
        "faae", "AGE, E", "the family",
        r"\min_E \mathrm{KL}(E(x) \| p) - W_{fake} \mathrm{KL}(E(G(z)) \| p) + W_x \lVert x - "
        r"G(E(x)) \rVert_1",
        "No discriminator: E spreads the codes of real images like the prior, and those of "
        "generated ones not (Ulyanov et al., arXiv 1704.02304).  Divergences and the absolute "
        "difference are means over dimensions.",
        ("test_an_iteration_by_hand", "test_the_losses_of_age",
         "test_ages_encoder_learns_of_g_as_it_is_used"),
        where=("age: opt.E",), flags=("--fake-weight",), differs=("age",)),
    Equation(
        "faae", "AGE, G", "the family",
        r"\min_G \mathrm{KL}(E(G(z)) \| p) + W_{re} \mathbb{E}[2 - z \cdot E(G(z)) / n_z]",
        "G spreads the codes of its images like the prior, each at its own place.",
        ("test_an_iteration_by_hand", "test_the_losses_of_age"), where=("age: opt.G",),
        flags=("--reencode-weight", "--g-steps"), differs=("age",)),
    Equation(
        "faae", "AGE, divergence", "the family",
        r"\mathrm{KL}(\mathcal{N}(m, s^2) \| \mathcal{N}(0, 1)) = \frac{1}{2}(m^2 + s^2 - 1 - "
        r"\log s^2)",
        "The divergence of the codes from the prior, by their mean and variance in each dimension.",
        ("test_ages_divergence_is_the_closed_form",), where=("gaussian_kl",),
        differs=("AGE's divergence", "age")),
    Equation(
        "faae", "LR", "the family",
        r"\min_E \mathbb{E}_z \lVert z - E(G(z)) \rVert_2^2",
        "Latent regressor: next to a GAN, which does not see it, E learns to return the code "
        "(ALAE's table 2; Donahue et al., arXiv 1605.09782).",
        ("test_an_iteration_by_hand",), where=("lr: opt.E",), differs=("norm of lr", "... of lr and jlr")),
    Equation(
        "faae", "JLR", "the family",
        r"\begin{aligned} & \min_{G, E} W_{re} \mathbb{E}_z \lVert z - E(G(z)) \rVert_2^2, \\ & "
        r"\max_G \mathbb{E}_z [\log D(G(z))] \end{aligned}",
        "Joint latent regressor: G, too, is moved by the error of the code.",
        ("test_an_iteration_by_hand", "test_the_losses_of_jlr"), where=("jlr: opt.G, opt.E",),
        flags=("--reencode-weight",), differs=("weight of jlr", "norm of lr", "... of lr and jlr")),
    Equation(
        "faae", "AE, l1", "the family",
        r"\min_{G, E} \mathbb{E}_x \lVert x - G(E(x)) \rVert_1",
        "A plain autoencoder, compared by absolute differences (ALAE's table 2).",
        ("test_an_iteration_by_hand",), where=("ae_l1",)),
    Equation(
        "faae", "AE, l2", "the family",
        r"\min_{G, E} \mathbb{E}_x \lVert x - G(E(x)) \rVert_2^2",
        "A plain autoencoder, compared by squared differences (ALAE's table 2).",
        ("test_an_iteration_by_hand",), where=("ae_l2",), differs=("norm of lr",)),

    # ---------------------------------------------------------------- numbers of still other papers
    Equation(
        "others", "Mescheder 2018 eq. 9", "losses",
        r"R_1 = \frac{\gamma}{2} E_{p_{\mathcal{D}}(x)} [ \lVert \nabla D(x) \rVert^2 ]",
        "R1: the squared length of the score's gradient at real images.",
        ("test_r1_of_a_linear_critic", "test_r1_is_a_mean_over_images")),
    Equation(
        "others", "Zhang 2018 eq. 1", "metrics",
        r"d(x, x_0) = \sum_l \frac{1}{H_l W_l} \sum_{h, w} \lVert w_l \odot (y_{hw}^l - "
        r"y_{0hw}^l) \rVert_2^2",
        "LPIPS: squared differences of unit features of VGG-16, weighed channel by channel.",
        ("test_lpips",)),
    Equation(
        "others", "Heusel 2017 eq. 6", "metrics",
        r"d^2 = \lVert m_a - m_b \rVert_2^2 + \operatorname{Tr}(C_a + C_b - 2 (C_a C_b)^{1/2})",
        "Frechet distance of two Gaussians: between sets of Inception's features it is FID.",
        ("test_fid_of_folders",)),
    Equation(
        "others", "Binkowski 2018 eq. 4", "metrics",
        r"\begin{aligned} & \mathrm{MMD}_u^2(X, Y) = \frac{1}{m(m - 1)} \sum_{i \ne j} k(x_i, "
        r"x_j) \\ & \quad + \frac{1}{n(n - 1)} \sum_{i \ne j} k(y_i, y_j) - \frac{2}{mn} \sum_i "
        r"\sum_j k(x_i, y_j) \end{aligned}",
        "The unbiased kernel distance; with k(x, y) = (x·y / d + 1)³ of Inception's features it "
        "is KID.",
        ("test_kernel_distance_by_hand", "test_kernel_distance_is_kid")),
    Equation(
        "others", "Kynkaanniemi 2019 eq. 1", "metrics",
        r"f(a, B) = 1 \quad \text{if } \lVert a - b \rVert_2 \le \lVert b - \operatorname{NN}_k(b, B) \rVert_2 "
        r"\text{ for some } b \in B, \text{ else } 0",
        "Whether a feature lies within the k-th neighbour's distance of one of a set.",
        ("test_precision_and_recall_by_hand", "test_precision_and_recall_against_torch_fidelity")),
    Equation(
        "others", "Kynkaanniemi 2019 eq. 2", "metrics",
        r"\operatorname{precision} = \frac{1}{n} \sum_i f(g_i, R), \quad \operatorname{recall} = \frac{1}{m} \sum_i "
        r"f(r_i, G)",
        "The shares of generated features that lie among real ones, and of real ones among generated ones.",
        ("test_precision_and_recall_by_hand", "test_precision_and_recall_of_half_a_set")),
]
