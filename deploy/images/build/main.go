// Command build packs the project's binaries into images, and pushes them:
// what "make images" and "make push" run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"sordino/deploy/images"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	dir := flags.String("dir", "bin/images", "`folder` of the images; the binaries are in its subfolders linux-ARCH")
	version := flags.String("version", "devel", "the images' version and tag")
	revision := flags.String("revision", "", "the commit")
	source := flags.String("source", "", "the `URL` of the source")
	created := flags.Int64("created", 0, "the commit's time, in seconds since 1970")
	architectures := flags.String("architectures", "amd64,arm64", "what to build for")
	push := flags.String("push", "", "push to this `registry` what was built before")
	if err := flags.Parse(args); err != nil {
		return err
	}
	all := []images.Image{images.Agent, images.Server}
	if *push != "" {
		fmt.Println("images:")
		for _, image := range all {
			reference, err := images.Push(ctx, *dir, image.Name, *push)
			if err != nil {
				return err
			}
			repository, digest, _ := strings.Cut(reference, "@")
			fmt.Printf("- name: %s/%s\n  newName: %s\n  digest: %s\n", images.Registry, image.Name, repository[:strings.LastIndexByte(repository, ':')], digest)
		}
		return nil
	}
	release := images.Release{Version: *version, Revision: *revision, Source: *source, Created: time.Unix(*created, 0)}
	var platforms []images.Platform
	for arch := range strings.SplitSeq(*architectures, ",") {
		platforms = append(platforms, images.Platform{Architecture: arch, Binaries: filepath.Join(*dir, "linux-"+arch)})
	}
	for _, image := range all {
		digest, err := image.Write(*dir, release, platforms)
		if err != nil {
			return err
		}
		fmt.Printf("%s/%s.tar\t%s/%s:%s\t%s\n", *dir, image.Name, images.Registry, image.Name, release.Version, digest)
	}
	return nil
}
